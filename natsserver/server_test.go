package natsserver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
)

// childFolder makes the test binary a server that runs until it is killed.
const childFolder = "NATSSERVER_TEST_CHILD_FOLDER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childFolder); dir != "" {
		if _, err := Start(context.Background(), Options{StateDir: dir, Logger: quiet()}); err != nil {
			_, _ = os.Stdout.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		_, _ = os.Stdout.WriteString("serving\n")
		time.Sleep(time.Minute)
		os.Exit(2)
	}
	goleak.VerifyTestMain(m)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func startServer(t *testing.T, o Options) *Server {
	t.Helper()
	if o.Logger == nil {
		o.Logger = quiet()
	}
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

func bucket(t *testing.T, clientURL string) (jetstream.KeyValue, *nats.Conn) {
	t.Helper()
	nc, err := nats.Connect(clientURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "b"})
	if err != nil {
		t.Fatal(err)
	}
	return kv, nc
}

func TestServeStopServeAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if _, err := ReadURL(dir); !errors.Is(err, ErrNotServing) || !strings.Contains(err.Error(), "--nats") {
		t.Fatalf("before: %v, want ErrNotServing with a next step", err)
	}
	s := startServer(t, Options{StateDir: dir})
	got, err := ReadURL(dir)
	if err != nil || got != s.ClientURL() {
		t.Fatalf("ReadURL: %q, %v", got, err)
	}
	if !s.Fresh() {
		t.Error("a new store is not fresh")
	}
	if runtime.GOOS != "windows" {
		for name, want := range map[string]fs.FileMode{".": 0o700, urlName: 0o600, lockName: 0o600, storeName: 0o700} {
			if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode().Perm() != want {
				t.Errorf("%s: mode %v, %v, want %v", name, fi.Mode().Perm(), err, want)
			}
		}
	}
	kv, nc := bucket(t, got)
	if _, err := kv.PutString(t.Context(), "k", "kept"); err != nil {
		t.Fatal(err)
	}
	nc.Close()
	stop(t, s)
	stop(t, s) // twice is fine
	if _, err := os.Stat(filepath.Join(dir, urlName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nats.url after the stop: %v", err)
	}

	again := startServer(t, Options{StateDir: dir})
	if again.Fresh() || again.ClientURL() == s.ClientURL() {
		t.Error("the old store is fresh, or the credentials are the same")
	}
	kv, _ = bucket(t, again.ClientURL())
	if e, err := kv.Get(t.Context(), "k"); err != nil || string(e.Value()) != "kept" {
		t.Errorf("data after a restart: %v, %v", e, err)
	}
}

func TestFolderInUse(t *testing.T) {
	dir := t.TempDir()
	startServer(t, Options{StateDir: dir})
	_, err := Start(t.Context(), Options{StateDir: dir, Logger: quiet()})
	e, ok := errors.AsType[*InUseError](err)
	if !ok || !errors.Is(err, ErrInUse) || e.StateDir != dir || e.PID != os.Getpid() {
		t.Fatalf("%v, want an InUseError with folder and pid", err)
	}
	if _, err := ReadURL(dir); err != nil {
		t.Errorf("the refused start took the first one's URL away: %v", err)
	}
}

// A killed server leaves its files behind, but not its lock.
func TestKilledServer(t *testing.T) {
	dir := t.TempDir()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childFolder+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "serving\n" {
		t.Fatalf("child says %q, %v", line, err)
	}
	_, err = Start(t.Context(), Options{StateDir: dir, Logger: quiet()})
	if e, ok := errors.AsType[*InUseError](err); !ok || e.PID != child.Process.Pid {
		t.Errorf("%v, want an InUseError with pid %d", err, child.Process.Pid)
	}
	if _, err := ReadURL(dir); err != nil {
		t.Errorf("ReadURL of a live server: %v", err)
	}
	_ = child.Process.Kill()
	_ = child.Wait()
	if _, err := os.Stat(filepath.Join(dir, urlName)); err != nil {
		t.Fatalf("the child removed its URL: %v", err)
	}
	if _, err := ReadURL(dir); !errors.Is(err, ErrNotServing) {
		t.Errorf("ReadURL after the kill: %v, want ErrNotServing", err)
	}
	if s := startServer(t, Options{StateDir: dir}); s.Fresh() {
		t.Error("the store that the killed server left is fresh")
	}
}

func TestOnlyLoopbackAndOnlyWithCredentials(t *testing.T) {
	var logs safeBuffer
	s := startServer(t, Options{StateDir: t.TempDir(),
		Logger: slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	u, err := url.Parse(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	if ip := net.ParseIP(u.Hostname()); !ip.IsLoopback() {
		t.Errorf("listens on %s", u.Host)
	}
	password, _ := u.User.Password()
	for _, bad := range []string{"nats://" + u.Host, "nats://modeld:wrong@" + u.Host} {
		if nc, err := nats.Connect(bad); !errors.Is(err, nats.ErrAuthorization) {
			nc.Close()
			t.Errorf("connected without the password: %v", err)
		}
	}
	bucket(t, s.ClientURL())
	stop(t, s)
	if text := logs.String(); len(password) < 32 || strings.Contains(text, password) || !strings.Contains(text, "nats-server: ") {
		t.Errorf("password of %d bytes, logs: %s", len(password), text)
	}
}

func TestStoreIsBounded(t *testing.T) {
	s := startServer(t, Options{StateDir: t.TempDir(), MaxStore: 1 << 20})
	kv, _ := bucket(t, s.ClientURL())
	var err error
	for i := 0; i < 64 && err == nil; i++ {
		_, err = kv.Put(t.Context(), "k"+string(rune('A'+i%26))+string(rune('A'+i/26)), make([]byte, 64<<10))
	}
	if err == nil {
		t.Error("4 MiB went into a store of 1 MiB")
	}
}

func TestBadStarts(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Close() }()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	port := busy.Addr().(*net.TCPAddr).Port
	for _, c := range []struct {
		name string
		ctx  context.Context
		o    Options
		want string
	}{
		{"no folder", t.Context(), Options{}, "StateDir"},
		{"folder is a file", t.Context(), Options{StateDir: file}, file},
		{"port out of range", t.Context(), Options{StateDir: t.TempDir(), Port: 70000}, "Port: 70000"},
		{"store too small", t.Context(), Options{StateDir: t.TempDir(), MaxStore: 5}, "MaxStore: 5"},
		{"busy port", t.Context(), Options{StateDir: t.TempDir(), Port: port}, "address already in use"},
		{"ended context", ended, Options{StateDir: t.TempDir()}, "context canceled"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Logger = quiet()
			s, err := Start(c.ctx, c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				if s != nil {
					stop(t, s)
				}
				t.Fatalf("%v, want %q", err, c.want)
			}
			if c.o.StateDir == "" || c.o.StateDir == file {
				return
			}
			// Nothing is left held: the next start with the folder succeeds.
			startServer(t, Options{StateDir: c.o.StateDir})
		})
	}
}

func TestJunkInURLFile(t *testing.T) {
	dir := t.TempDir()
	startServer(t, Options{StateDir: dir})
	if err := os.WriteFile(filepath.Join(dir, urlName), []byte("http://u:secret@x%zz"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := ReadURL(dir)
	if err == nil || errors.Is(err, ErrNotServing) || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
