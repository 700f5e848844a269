package daemon

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestListen(t *testing.T) {
	dir := t.TempDir()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	served, err := net.Listen("unix", filepath.Join(dir, "served.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	dead, err := net.Listen("unix", filepath.Join(dir, "dead.sock"))
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = dead.Close()
	if err := os.WriteFile(filepath.Join(dir, "notes.txt"), []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}

	tests := []struct {
		name, endpoint, wantErr string
	}{
		{"a free port", "127.0.0.1:0", ""},
		{"a busy port", busy.Addr().String(), "in use"},
		{"a new socket", "unix:" + filepath.Join(dir, "new.sock"), ""},
		{"a socket left by a dead process", "unix:" + filepath.Join(dir, "dead.sock"), ""},
		{"a socket that is served", "unix:" + filepath.Join(dir, "served.sock"), "another process serves there"},
		{"a file in the way", "unix:" + filepath.Join(dir, "notes.txt"), "no socket is in the way"},
		{"a path that is too long", "unix:" + filepath.Join(dir, strings.Repeat("x", 120)), "at most 107 bytes"},
		{"no such folder", "unix:" + filepath.Join(dir, "none", "x.sock"), "no such file"},
		{"no address", "nowhere", "missing port"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			lis, endpoint, err := listen(t.Context(), tt.endpoint)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Fatalf("error = %v, want one that says %q", err, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer lis.Close()
			path, isUnix := strings.CutPrefix(endpoint, unixPrefix)
			if !isUnix {
				if strings.HasSuffix(endpoint, ":0") {
					t.Errorf("endpoint = %s, want the chosen port", endpoint)
				}
				return
			}
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if perm := info.Mode().Perm(); perm != 0o600 {
				t.Errorf("the socket's mode is %o, want 600", perm)
			}
		})
	}
}

// A connection made while no server is there is served by the next one.
func TestGateKeepsConnectionsBetweenServers(t *testing.T) {
	lis, endpoint, err := listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := newGate(lis)
	defer g.Close()

	first := g.open()
	_ = first.Close()
	if _, err := first.Accept(); err == nil {
		t.Fatal("a closed listener accepts")
	}
	client, err := net.Dial("tcp", endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	second := g.open()
	conn, err := second.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hi")); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	buf := make([]byte, 2)
	if _, err := client.Read(buf); err != nil || string(buf) != "hi" {
		t.Fatalf("read %q, %v", buf, err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Accept(); err == nil {
		t.Fatal("a listener of a closed gate accepts")
	}
}
