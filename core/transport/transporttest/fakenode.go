package transporttest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"modeld/core/transport"
)

// FullFake is a Fake with every optional interface.
type FullFake struct {
	*Fake
	*FakeController
	*FakeNode
	*FakeReady
}

// NewFullFake returns a FullFake over f; nil is a zero Fake.
func NewFullFake(f *Fake) *FullFake {
	if f == nil {
		f = &Fake{}
	}
	return &FullFake{f, &FakeController{Sessions: f.Sessions}, &FakeNode{}, &FakeReady{}}
}

// FakeReady is a transport.ReadyReporter that reports Err.
type FakeReady struct {
	mu  sync.Mutex
	err error
}

// SetReady sets what Ready returns.
func (r *FakeReady) SetReady(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

// Ready returns what SetReady was given.
func (r *FakeReady) Ready(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// FakeController is a transport.ModelController that loads nothing.
type FakeController struct {
	// Sessions is how many sessions are open; nil means none.
	Sessions func() int

	mu         sync.Mutex
	active     *transport.ActiveModel
	generation uint64
}

// Status reports the slot.
func (c *FakeController) Status(context.Context) (transport.DaemonStatus, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := transport.DaemonStatus{Backend: "fake", State: transport.SlotEmpty, Sessions: c.sessions()}
	if c.active != nil {
		active := *c.active
		st.State, st.Active = transport.SlotReady, &active
	}
	return st, nil
}

// LoadModel makes the named model the active one.
func (c *FakeController) LoadModel(_ context.Context, req transport.LoadModelRequest) (transport.ActiveModel, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.check(req.ExpectedGeneration); err != nil {
		return transport.ActiveModel{}, err
	}
	c.generation++
	c.active = &transport.ActiveModel{
		ModelName: req.ModelName, Type: req.Type, Digest: req.Digest, Path: req.Path,
		Config: req.Config, Adapters: req.Adapters, Generation: c.generation,
	}
	return *c.active, nil
}

// UnloadModel empties the slot.
func (c *FakeController) UnloadModel(_ context.Context, req transport.UnloadModelRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.check(req.ExpectedGeneration); err != nil {
		return err
	}
	if c.active == nil {
		return fmt.Errorf("%w: the slot is empty", transport.ErrModelNotActive)
	}
	if n := c.sessions(); n > 0 {
		return fmt.Errorf("%w: %d sessions are open", transport.ErrModelBusy, n)
	}
	c.generation++
	c.active = nil
	return nil
}

func (c *FakeController) check(expected uint64) error {
	if expected != 0 && expected != c.generation {
		return fmt.Errorf("%w: expected %d, it is %d", transport.ErrSlotGenerationStale, expected, c.generation)
	}
	return nil
}

func (c *FakeController) sessions() int {
	if c.Sessions == nil {
		return 0
	}
	return c.Sessions()
}

// FakeNode is a transport.NodeAdmin that keeps models in memory.
type FakeNode struct {
	mu     sync.Mutex
	models []transport.NodeModel
	data   map[string][]byte
}

// Data returns a stored model's bytes.
func (n *FakeNode) Data(name string) []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.data[name]
}

// ListModels lists the stored models.
func (n *FakeNode) ListModels(context.Context) ([]transport.NodeModel, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.models), nil
}

// RemoveModel removes a stored model.
func (n *FakeNode) RemoveModel(_ context.Context, name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := n.index(name)
	if i < 0 {
		return fmt.Errorf("%w: %q", transport.ErrModelNotFound, name)
	}
	n.models = slices.Delete(n.models, i, i+1)
	delete(n.data, name)
	return nil
}

// DiskStats counts the stored bytes.
func (n *FakeNode) DiskStats(context.Context) (transport.NodeDiskStats, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	const total = 1 << 30
	var used int64
	for _, m := range n.models {
		used += m.SizeBytes
	}
	return transport.NodeDiskStats{FreeBytes: total - used, UsedBytes: used, TotalBytes: total}, nil
}

// ReceiveModel stores a model. One that is there already, by its digest, is not
// read.
func (n *FakeNode) ReceiveModel(_ context.Context, m transport.PushManifest, r io.Reader) (transport.PushResult, error) {
	want := strings.TrimPrefix(m.Digest, "sha256:")
	n.mu.Lock()
	i := n.index(m.Name)
	present := i >= 0 && want != "" && n.models[i].Digest == want
	n.mu.Unlock()
	if present {
		return transport.PushResult{AlreadyPresent: true}, nil
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return transport.PushResult{}, err
	}
	sum := sha256.Sum256(data)
	got := hex.EncodeToString(sum[:])
	if want != "" && want != got {
		return transport.PushResult{}, fmt.Errorf("%w: got %s, announced %s", transport.ErrDigestMismatch, got, want)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	model := transport.NodeModel{Name: m.Name, Type: m.Type, Digest: got, SizeBytes: int64(len(data))}
	if i := n.index(m.Name); i >= 0 {
		n.models[i] = model
	} else {
		n.models = append(n.models, model)
	}
	if n.data == nil {
		n.data = make(map[string][]byte)
	}
	n.data[m.Name] = data
	return transport.PushResult{BytesWritten: int64(len(data))}, nil
}

func (n *FakeNode) index(name string) int {
	return slices.IndexFunc(n.models, func(m transport.NodeModel) bool { return m.Name == name })
}
