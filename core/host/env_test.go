package host

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestBuildEnv(t *testing.T) {
	host := []string{"PATH=/bin", "LC_ALL=C", "CUDA_VISIBLE_DEVICES=1", "AWS_SECRET_ACCESS_KEY=s", "MODELD_NATS__URL=u", "PATHOLOGY=x", "MY_A=1", "MY_B=2", "ODD"}
	got, err := buildEnv(host, []string{"MY_*", "FIXED=v=w"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"PATH=/bin", "LC_ALL=C", "CUDA_VISIBLE_DEVICES=1", "MY_A=1", "MY_B=2", "FIXED=v=w"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, bad := range []string{"", "=x", "[a"} {
		if _, err := buildEnv(host, []string{bad}); err == nil {
			t.Errorf("the entry %q was taken", bad)
		}
	}
}

func TestBackoff(t *testing.T) {
	o := Options{}.withDefaults()
	for failures, most := range map[int]time.Duration{1: 500 * time.Millisecond, 2: time.Second, 4: 4 * time.Second, 8: time.Minute, 1000: time.Minute} {
		for range 100 {
			if d := o.backoff(failures); d < most/2 || d > most {
				t.Fatalf("after %d failures: %v, want %v to %v", failures, d, most/2, most)
			}
		}
	}
}

// TestSweepRunDirs: what a dead host left is removed, what a living or a
// starting one has is not.
func TestSweepRunDirs(t *testing.T) {
	base, err := os.MkdirTemp("", "s-") //nolint:usetesting // sockets need short paths
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	old := time.Now().Add(-time.Hour)
	living, err := newRunDir(base)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(living.path, lockName), old, old); err != nil {
		t.Fatal(err)
	}
	leave := func(name string, at time.Time) string {
		dir := filepath.Join(base, runDirPrefix+name)
		if err := os.MkdirAll(filepath.Join(dir, "plugin-dir1"), 0o700); err != nil {
			t.Fatal(err)
		}
		lock := filepath.Join(dir, lockName)
		if err := os.WriteFile(lock, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(lock, at, at); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	dead, young := leave("dead", old), leave("young", time.Now())
	next, err := newRunDir(base)
	if err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{dead: false, young: true, living.path: true, next.path: true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s exists: %t, want %t", dir, err == nil, want)
		}
	}
	if info, err := os.Stat(next.path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder's mode: %v, %v", info.Mode(), err)
	}
	for _, d := range []*runDir{living, next} {
		if err := d.remove(); err != nil {
			t.Error(err)
		}
	}
}
