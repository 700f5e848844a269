package config_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"modeld/cmd/modeld/internal/config"
)

// Every error names the key, its value, where it stands, and what to do. FILE
// is the file's path.
func TestWhatIsWrongIsNamed(t *testing.T) {
	tests := []struct {
		name, yaml, env, want string
	}{
		// Keys.
		{name: "unknown key", yaml: "nats: {ulr: x}", want: `file FILE: unknown key "nats.ulr"; the nearest known one is "nats.url"`},
		{name: "unknown section", yaml: "nat: {url: x}", want: `file FILE: unknown key "nat"; the nearest known one is "nats"`},
		{name: "unknown variable", env: "MODELD_LEASE__WIAT=1s", want: `env MODELD_LEASE__WIAT: unknown key "lease.wiat"; the nearest known one is "lease.wait"`},
		{name: "one underscore", env: "MODELD_NATS_URL=x", want: `env MODELD_NATS_URL: unknown key "nats_url"; the nearest known one is "nats.url"`},
		{name: "a key with a dot", yaml: "nats.url: x", want: `file FILE: the key "nats.url" has a dot in it; write its parts as sections, one within the other`},
		{name: "a value for a section", yaml: "nats: here", want: `nats (file FILE): this is a section and takes keys, not a value`},
		{name: "a variable for a section", env: "MODELD_NATS=here", want: `nats (env MODELD_NATS): this is a section and takes keys, not a value`},
		{name: "a section for a value", yaml: "slot: {a: b}", want: `file FILE: unknown key "slot.a"; the nearest known one is "slot"`},
		{name: "of a model", yaml: "models: [{name: a, pth: /b}]", want: `file FILE: unknown key "models[0].pth"; the nearest known one is "models[0].path"`},
		{name: "of a model's config", yaml: "models: [{name: a, path: /b, config: {num_ctxt: 1}}]",
			want: `file FILE: unknown key "models[0].config.num_ctxt"; the nearest known one is "models[0].config.num_ctx"`},
		{name: "of model_config", env: "MODELD_MODEL_CONFIG__NUM_CTXT=1",
			want: `env MODELD_MODEL_CONFIG__NUM_CTXT: unknown key "model_config.num_ctxt"; the nearest known one is "model_config.num_ctx"`},

		// Types.
		{name: "no YAML", yaml: "a: [", want: "file FILE: yaml: line 1: did not find expected node content"},
		{name: "no mapping", yaml: "- a", want: "file FILE: yaml: unmarshal errors: line 1: cannot unmarshal !!seq into map[string]interface {}"},
		{name: "no duration", yaml: "lease: {wait: long}", want: "lease.wait = long (file FILE): use a time with its unit, such as 500ms, 10s or 1m30s"},
		{name: "no unit", yaml: "drain_timeout: 10", want: "drain_timeout = 10 (file FILE): use a time with its unit, such as 500ms, 10s or 1m30s"},
		{name: "no size", yaml: "nats: {embedded: {max_store: big}}", want: "nats.embedded.max_store = big (file FILE): this is no size; write it as 1048576, 256MiB or 1GB"},
		{name: "no number", env: "MODELD_LIMITS__SESSIONS=many", want: "limits.sessions = many (env MODELD_LIMITS__SESSIONS): it must be a whole number, and not that large"},
		{name: "half a session", yaml: "limits: {sessions: 1.5}", want: "limits.sessions = 1.5 (file FILE): it must be a whole number, and not that large"},
		{name: "truth for a number", yaml: "limits: {sessions: true}", want: "limits.sessions = true (file FILE): it must be a number"},
		{name: "a number for a name", yaml: "slot: 7", want: "slot = 7 (file FILE): it must be text; put it in quotes"},
		{name: "no truth", env: "MODELD_ALLOW_PATHS=perhaps", want: "allow_paths = perhaps (env MODELD_ALLOW_PATHS): use true or false"},
		{name: "no list", yaml: "models: 3", want: "models = 3 (file FILE): it must be a list"},
		{name: "no models", yaml: "models: [3]", want: "models[0] (file FILE): it must have keys such as name and path"},
		{name: "no number in a model", yaml: "models: [{name: a, path: /b, config: {num_ctx: big}}]",
			want: "models[0].config.num_ctx (file FILE): it must be a whole number, and not that large"},
		{name: "no section", env: "MODELD_LLAMA=3", want: "llama = 3 (env MODELD_LLAMA): it must be a section with keys"},

		// Values.
		{name: "no level", yaml: "log: {level: loud}", want: "log.level = loud (file FILE): use debug, info, warn or error"},
		{name: "no format", yaml: "log: {format: xml}", want: "log.format = xml (file FILE): use text or json"},
		{name: "a backend that is a path", yaml: "backend: ../x", want: "backend = ../x (file FILE): use 1 to 64 lower-case letters, digits, - and _"},
		{name: "a slot that is a subject", yaml: "slot: a.b", want: "slot = a.b (file FILE): use 1 to 64 letters, digits, - and _"},
		{name: "no time to drain", yaml: "drain_timeout: 0s", want: "drain_timeout = 0s (file FILE): it must be above 0, such as 10s"},
		{name: "no session", yaml: "limits: {sessions: 0}", want: "limits.sessions = 0 (file FILE): it must be at least 1"},
		{name: "less than no queue", yaml: "engine: {queue_limit: -1}", want: "engine.queue_limit = -1 (file FILE): it must be at least 0"},
		{name: "no port", yaml: "nats: {embedded: {port: 70000}}", want: "nats.embedded.port = 70000 (file FILE): use a port from 1 to 65535, or 0 for any free one"},
		{name: "no store", yaml: "nats: {embedded: {max_store: 1kB}}", want: "nats.embedded.max_store = 1kB (file FILE): it must be at least 1MiB"},
		{name: "no name", yaml: "models: [{path: /b}]", want: "models[0] (file FILE): it has no name; clients ask for the model by that"},
		{name: "no path", yaml: "models: [{name: b}]", want: "models[0] (file FILE): b has no path; name its GGUF file or IR folder"},
		{name: "two of one name", yaml: "models: [{name: a, path: /b}, {name: a, path: /c}]", want: "models[1] (file FILE): two are named a; rename one"},
		{name: "no digest", yaml: "models: [{name: a, path: /b, digest: abc}]", want: `models[0].digest (file FILE): "abc" is no SHA-256; sha256sum prints it`},
		{name: "a negative context", yaml: "model_config: {num_ctx: -1}", want: "model_config.num_ctx = -1 (file FILE): -1 is below 0; use 0 to let the backend decide"},
		{name: "a negative share", yaml: "model_config: {tensor_split: [1, -1]}", want: "model_config.tensor_split = [1,-1] (file FILE): -1 is no share of a GPU; use numbers from 0"},
		{name: "no hash", yaml: "plugins: {sha256: {llama: abc}}", want: "plugins.sha256.llama = abc (file FILE): this is no SHA-256; sha256sum prints it"},
		{name: "no variable", yaml: "plugins: {env: ['a b=geheim']}", want: `plugins.env = a b=(hidden) (file FILE): "a b" is no variable; use NAME, PATTERN_* or NAME=value`},
		{name: "a backend's own section", yaml: "backends: {llama: {threads: 1}}", want: "backends.llama (file FILE): llama is not a third party's; use the section llama:"},
		{name: "no JSON", yaml: "llama: {x: .nan}", want: "llama.x = a value of type float64 (file FILE): it can't be passed to the backend (json: unsupported value: NaN); use text, numbers, lists and sections"},

		// Where to listen.
		{name: "beyond loopback", yaml: "listen: 0.0.0.0:1",
			want: "listen = 0.0.0.0:1 (file FILE): it would be reached from other machines, and there is no TLS and no authentication yet; use 127.0.0.1, [::1] or unix:/PATH"},
		{name: "every interface", yaml: `listen: ":1"`,
			want: "listen = :1 (file FILE): it would be reached from other machines, and there is no TLS and no authentication yet; use 127.0.0.1, [::1] or unix:/PATH"},
		{name: "a relative socket", yaml: "listen: unix:x", want: "listen = unix:x (file FILE): the socket's path is not absolute; use unix:/PATH"},
		{name: "no port to listen on", yaml: "listen: localhost:http", want: `listen = localhost:http (file FILE): "http" is no port; use 1 to 65535, or 0 for any free one`},
		{name: "no address", yaml: "listen: here", want: "listen = here (file FILE): use HOST:PORT, such as 127.0.0.1:7070, or unix:/PATH"},

		// The lease.
		{name: "no bucket", yaml: "lease: {bucket: a.b}", want: "lease.bucket = a.b (file FILE): use 1 to 64 letters, digits, - and _"},
		{name: "no wait", yaml: "lease: {wait: 1ms}", want: "lease.wait = 1ms (file FILE): use whole milliseconds from 10ms to 10m0s"},
		{name: "a late deadline", yaml: "lease: {wait: 2s}", want: "lease.deadline = 2250ms (default): it must be above 0 and at most 3/4 of lease.wait, which is 2s"},
		{name: "a late renewal", yaml: "lease: {renew: 3s}", want: "lease.renew = 3s (file FILE): it must be above 0 and below lease.deadline, which is 2.25s"},
		{name: "no time to try", yaml: "lease: {try: 2s}", want: "lease.try = 2s (file FILE): it must be above 0 and, with lease.renew (500ms), at most lease.deadline (2.25s)"},

		// NATS, whose secrets are in no error.
		{name: "no URL", yaml: "nats: {url: 'nats://bob:geheim'}", want: "nats.url = (hidden) (file FILE): use nats://HOST:4222, tls://, ws:// or wss://, several with commas between"},
		{name: "another scheme", yaml: "nats: {url: 'http://bob:geheim@x'}", want: "nats.url = (hidden) (file FILE): use nats://HOST:4222, tls://, ws:// or wss://, several with commas between"},
		{name: "a list for a secret", yaml: "nats: {password: [geheim]}", want: "nats.password = (hidden) (file FILE): it must be text; put it in quotes"},
		{name: "two ways to authenticate", yaml: "nats: {url: x, user: a, token: geheim}", want: "nats.token = (hidden) (file FILE): nats.user is set too (file FILE), and they exclude each other; keep one"},
		{name: "credentials for nobody", yaml: "nats: {token: geheim}", want: "nats.token = (hidden) (file FILE): it is set without nats.url; the embedded server makes its own credentials"},
		{name: "a password for nobody", yaml: "nats: {url: x, password: geheim}", want: "nats.password = (hidden) (file FILE): nats.user is missing; set it, or remove the password"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := file(t, tt.yaml)
			_, err := config.Load(config.Sources{File: path, Environ: []string{tt.env}})
			want := "configuration: " + strings.ReplaceAll(tt.want, "FILE", path)
			if !errors.Is(err, config.ErrInvalid) || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

func TestNoFile(t *testing.T) {
	_, err := config.Load(config.Sources{File: "/none/such.yaml"})
	const want = "configuration: there is no file /none/such.yaml; `modeld config --defaults` prints one to start from"
	if !errors.Is(err, config.ErrInvalid) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	c, err := config.Load(config.Sources{File: file(t, `
nats: {url: "nats://bob:geheim@x:1, tls://geheim@y", user: bob, password: geheim}
llama: {api_token: geheim, nested: {secret: geheim}, list: [{password: geheim}]}
plugins: {env: [HF_TOKEN=geheim, HOME]}
`)})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := c.Print(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "geheim") {
		t.Errorf("a secret was printed:\n%s", out.String())
	}
	for key, want := range map[string]string{
		"nats.url": "nats://hidden@x:1,tls://hidden@y", "plugins.env": "HF_TOKEN=(hidden),HOME", "nats.password": "(hidden)", "nats.token": `""`,
	} {
		if line := lineOf(out.String(), key); !strings.Contains(line, " "+want+" ") {
			t.Errorf("%q, want the value %s", line, want)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("slot: a", "nats__url=x", "")
	f.Add("models: [{name: a, path: /b}]", "slot=b", "b")
	f.Add("lease: {wait: 1h}\nllama: {a: {b: [1, .inf]}}", "lease__wait=", "")
	f.Add("nats: {url: 'nats://u:p@h'}\nlog: {level: 4}", "models=[{}]", "default")
	f.Add("backends: {x: {? [1] : 2}}\nmodel_config: {num_ctx: 1e99}", "nats={url: x}", "")
	path := filepath.Join(f.TempDir(), "config.yaml")
	f.Fuzz(func(t *testing.T, yaml, env, slot string) {
		if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		src := config.Sources{File: path, Environ: []string{"MODELD_" + strings.ToUpper(env)}}
		if slot != "" {
			src.Flags = map[string]any{"slot": slot}
		}
		c, err := config.Load(src)
		if err != nil {
			if !errors.Is(err, config.ErrInvalid) || c != nil {
				t.Errorf("%v with %v", c, err)
			}
			return
		}
		switch {
		case slot != "" && c.Slot != slot:
			t.Errorf("slot %q, want the flag's %q", c.Slot, slot)
		case c.Slot == "" || c.Backend == "" || c.StateDir == "" || c.DrainTimeout <= 0 || c.Limits.Sessions < 1:
			t.Errorf("accepted: %+v", c)
		case c.Lease.Renew+c.Lease.Try > c.Lease.Deadline || c.Lease.Deadline >= c.Lease.Wait:
			t.Errorf("accepted a lease that can't hold: %+v", c.Lease)
		}
		if _, err := json.Marshal(c.PluginSettings()); err != nil {
			t.Errorf("the plugin can't be given its settings: %v", err)
		}
		if err := c.Print(io.Discard); err != nil {
			t.Error(err)
		}
	})
}
