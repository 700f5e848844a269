package natslease

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseRecord(t *testing.T) {
	good := `{"state":"owned","epoch":3,"instance":"h-3-ab","host":"h","pid":7,"wait_ms":3000,"nonce":"n"}`
	with := func(old, repl string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("no %s in the good record", old)
		}
		return strings.Replace(good, old, repl, 1)
	}
	for _, c := range []struct{ name, data, want string }{
		{"good", good, ""},
		{"a field of a later version", with(`{`, `{"zone":"x",`), ""},
		{"empty", ``, "EOF"},
		{"not JSON", `owned`, "invalid character"},
		{"two documents", good + good, "data after the JSON document"},
		{"wrong type", with(`"epoch":3`, `"epoch":"3"`), "epoch"},
		{"unknown state", with(`"owned"`, `"mine"`), `state "mine"`},
		{"no epoch", with(`"epoch":3`, `"epoch":0`), "epoch 0"},
		{"epoch too large", with(`"epoch":3`, `"epoch":9007199254740992`), "epoch 9007199254740992"},
		{"no instance", with(`h-3-ab`, ``), "instance is missing"},
		{"no nonce", with(`"n"`, `""`), "nonce is missing"},
		{"negative pid", with(`:7`, `:-7`), "pid -7"},
		{"no wait", with(`3000`, `0`), "wait_ms 0"},
		{"wait for ever", with(`3000`, `9223372036854775807`), "wait_ms"},
		{"control character", with(`"host":"h"`, `"host":"a\nb"`), "host contains"},
		{"long field", with(`"host":"h"`, `"host":"`+strings.Repeat("h", 513)+`"`), "host has 513 bytes"},
		{"long record", good + strings.Repeat(" ", MaxRecordBytes), "at most 8192"},
		{"invalid UTF-8", with(`"host":"h"`, "\"host\":\"\xff\""), "UTF-8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := ParseRecord([]byte(c.data))
			switch {
			case c.want == "" && (err != nil || r.Epoch != 3 || r.Wait() != 3*time.Second):
				t.Errorf("%+v, %v", r, err)
			case c.want != "" && (!errors.Is(err, ErrBadRecord) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v, want ErrBadRecord with %q", err, c.want)
			}
		})
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add(testRecord("h-1-a", "n").encode())
	f.Add([]byte(`{"state":"released","epoch":1,"instance":"i","nonce":"\ud800","wait_ms":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseRecord(data)
		if err != nil {
			if !errors.Is(err, ErrBadRecord) || r != (Record{}) {
				t.Fatalf("%+v, %v", r, err)
			}
			return
		}
		again, err := ParseRecord(r.encode())
		if err != nil || again != r {
			t.Fatalf("%+v becomes %+v, %v", r, again, err)
		}
	})
}

func FuzzParseMsgGet(f *testing.F) {
	b64 := base64.StdEncoding.EncodeToString
	f.Add([]byte(fmt.Sprintf(`{"message":{"seq":4,"data":%q}}`, b64(testRecord("h-1-a", "n").encode()))))
	f.Add([]byte(fmt.Sprintf(`{"message":{"seq":4,"hdrs":%q}}`, b64([]byte("NATS/1.0\r\nKV-Operation: PURGE\r\n\r\n")))))
	f.Add([]byte(`{"error":{"code":404,"err_code":10037}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parseMsgGet(data)
		if err == nil && (s.rev == 0) != (s.kind == absent) {
			t.Fatalf("%+v", s)
		}
	})
}

func TestParseMsgGetSeesMarkers(t *testing.T) {
	hdr := base64.StdEncoding.EncodeToString([]byte("NATS/1.0\r\nNats-Marker-Reason: MaxAge\r\n\r\n"))
	s, err := parseMsgGet([]byte(`{"message":{"seq":9,"hdrs":"` + hdr + `"}}`))
	if err != nil || s.kind != deleted || s.rev != 9 {
		t.Fatalf("%+v, %v", s, err)
	}
}

func TestOptionErrorsNameTheOption(t *testing.T) {
	for _, c := range []struct {
		option string
		change func(*Options)
	}{
		{"Slot", func(o *Options) { o.Slot = "" }},
		{"Slot", func(o *Options) { o.Slot = "a.b" }},
		{"Bucket", func(o *Options) { o.Bucket = "a b" }},
		{"Host", func(o *Options) { o.Host = "a b" }},
		{"Replicas", func(o *Options) { o.Replicas = -1 }},
		{"Wait", func(o *Options) { o.Wait = time.Millisecond }},
		{"Wait", func(o *Options) { o.Wait = time.Hour }},
		{"Deadline", func(o *Options) { o.Deadline = o.Wait/4*3 + 1 }},
		{"Renew", func(o *Options) { o.Deadline, o.Renew = time.Second, time.Second }},
		{"Try", func(o *Options) { o.Renew, o.Try = time.Second, 2*time.Second }},
		{"Endpoint", func(o *Options) { o.Endpoint = "a\nb" }},
	} {
		o := Options{Slot: "s", Host: "h", Wait: 3 * time.Second}
		c.change(&o)
		_, err := o.withDefaults()
		if e, ok := errors.AsType[*OptionError](err); !ok || e.Option != c.option {
			t.Errorf("%v, want an OptionError about %s", err, c.option)
		}
	}
	o, err := Options{Slot: "s", Host: "h"}.withDefaults()
	if err != nil || o.Wait != 3*time.Second || o.Deadline != 2250*time.Millisecond || o.Renew != 500*time.Millisecond || o.Try != 500*time.Millisecond {
		t.Errorf("defaults: %+v, %v", o, err)
	}
}

func TestEpochFile(t *testing.T) {
	f := epochFile(filepath.Join(t.TempDir(), "epoch"))
	if e, err := f.load(); e != 0 || err != nil {
		t.Fatalf("no file: %d, %v", e, err)
	}
	for _, want := range []uint64{7, 8} {
		if err := f.save(want); err != nil {
			t.Fatal(err)
		}
		if e, err := f.load(); e != want || err != nil {
			t.Fatalf("%d, %v, want %d", e, err, want)
		}
	}
	if left, _ := filepath.Glob(string(f) + ".tmp*"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := os.WriteFile(string(f), []byte("seven"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.load(); !errors.Is(err, ErrEpochFile) || !strings.Contains(err.Error(), string(f)) {
		t.Errorf("junk: %v", err)
	}
	if err := epochFile(filepath.Join(string(f), "x")).save(1); !errors.Is(err, ErrEpochFile) {
		t.Errorf("no directory: %v", err)
	}
}

func TestBootTimeRuns(t *testing.T) {
	a := BootTime()
	time.Sleep(20 * time.Millisecond)
	if d := BootTime() - a; d < 15*time.Millisecond || d > time.Minute {
		t.Errorf("20 ms took %s", d)
	}
}
