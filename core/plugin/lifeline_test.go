package plugin

import (
	"os"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestLifelineEndsProcess: the process ends when the pipe does, also where the
// service never comes to its end.
func TestLifelineEndsProcess(t *testing.T) {
	for name, hangs := range map[string]bool{"closing in time": false, "hanging": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				w.Close()
				release := make(chan struct{})
				start, closed, code := time.Now(), false, -1
				watchLifeline(r, func() {
					if hangs {
						<-release
					}
					closed = true
				}, func(c int) { code = c })
				if took := time.Since(start); took >= 2*time.Second {
					t.Errorf("took %v", took)
				}
				if code != 1 || closed == hangs {
					t.Errorf("exit code %d, closed %t", code, closed)
				}
				close(release)
				synctest.Wait()
				r.Close()
			})
		})
	}
}

func TestLifelineAbsent(t *testing.T) {
	for _, value := range []string{"", "x", "-1"} {
		t.Setenv(EnvLifeline, value)
		if f := lifeline(); f != nil {
			t.Errorf("lifeline with %q = %v, want none", value, f.Name())
		}
	}
}
