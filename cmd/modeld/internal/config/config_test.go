package config_test

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"modeld/cmd/modeld/internal/config"
)

// file writes a configuration file and returns its path.
func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaults(t *testing.T) {
	c, err := config.Load(config.Sources{File: file(t, "")})
	if err != nil {
		t.Fatal(err)
	}
	if c.Backend != "llama" || c.Slot != "default" || c.DrainTimeout != 10*time.Second ||
		c.NATS.Embedded.MaxStore != 256<<20 || c.Lease.Deadline != 2250*time.Millisecond || c.Limits.Sessions != 4096 {
		t.Errorf("defaults: %+v", c)
	}
	if !filepath.IsAbs(c.StateDir) || !filepath.IsAbs(c.Plugins.Dir) {
		t.Errorf("state_dir %q and plugins.dir %q are not absolute", c.StateDir, c.Plugins.Dir)
	}
	models, name, err := c.DefaultModel()
	if err != nil || name != "" || len(models) != 0 {
		t.Errorf("without models: %v, %q, %v", models, name, err)
	}
}

// The file at the project's root is what the code has.
func TestConfigYAMLIsTheDefaults(t *testing.T) {
	root, err := os.ReadFile("../../../../config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(root, config.Defaults) {
		t.Error("config.yaml differs from defaults.yaml; copy the latter")
	}
}

func TestLaterSourcesWin(t *testing.T) {
	src := config.Sources{
		File:    file(t, "slot: file\nbackend: none\nlog: {level: warn}\nlease: {wait: 4s, deadline: 3s}\nnone: {echo: true}\n"),
		Environ: []string{"MODELD_SLOT=env", "MODELD_NATS__URL=nats://x:1", "MODELD_NONE__MAX_CTX=7", "MODELD_CACHE=/c", "MODELD_PLUGIN_CONFIG={}", "HOME=/root"},
		Flags:   map[string]any{"slot": "flag"},
	}
	c, err := config.Load(src)
	if err != nil {
		t.Fatal(err)
	}
	if c.Slot != "flag" || c.Backend != "none" || c.NATS.URL != "nats://x:1" || c.Lease.Wait != 4*time.Second {
		t.Errorf("%+v", c)
	}
	if got, want := c.PluginSettings(), map[string]any{"echo": true, "max_ctx": 7}; !reflect.DeepEqual(got, want) {
		t.Errorf("settings of the plugin: %v, want %v", got, want)
	}
	var out strings.Builder
	if err := c.Print(&out); err != nil {
		t.Fatal(err)
	}
	for key, origin := range map[string]string{
		"slot": "flag --slot", "backend": "file " + src.File, "nats.url": "env MODELD_NATS__URL",
		"none.max_ctx": "env MODELD_NONE__MAX_CTX", "log.level": "file " + src.File, "listen": "default",
	} {
		if line := lineOf(out.String(), key); !strings.HasSuffix(line, origin) {
			t.Errorf("%s: %q, want the origin %q", key, line, origin)
		}
	}
}

func lineOf(text, key string) string {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, key+" ") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

func TestSecretsAreNotPrinted(t *testing.T) {
	c, err := config.Load(config.Sources{File: file(t, "nats: {url: 'nats://bob:geheim@x:1', user: bob, password: geheim}\nllama: {api_token: geheim}\n")})
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
}

func TestWhatIsWrongIsNamed(t *testing.T) {
	tests := []struct {
		name, yaml string
		env        []string
		want       []string // in the error
	}{
		{name: "unknown key", yaml: "nats: {ulr: x}", want: []string{`"nats.ulr"`, `"nats.url"`, "file /"}},
		{name: "unknown variable", env: []string{"MODELD_LEASE__WIAT=1s"}, want: []string{`"lease.wiat"`, `"lease.wait"`, "env MODELD_LEASE__WIAT"}},
		{name: "unknown key of a model", yaml: "models: [{name: a, pth: /b}]", want: []string{`"models[0].pth"`, `"models[0].path"`}},
		{name: "unknown key of a model's config", yaml: "models: [{name: a, path: /b, config: {num_ctxt: 1}}]", want: []string{`"models[0].config.num_ctxt"`, `num_ctx"`}},
		{name: "unknown key of model_config", yaml: "model_config: {num_ctxt: 1}", want: []string{`"model_config.num_ctxt"`, `num_ctx"`}},
		{name: "a value for a section", yaml: "nats: here", want: []string{"nats is a section"}},
		{name: "no YAML", yaml: "a: [", want: []string{"file /", "line 1"}},
		{name: "no duration", yaml: "lease: {wait: long}", want: []string{"lease.wait", "long", "file /"}},
		{name: "no size", yaml: "nats: {embedded: {max_store: big}}", want: []string{"max_store", `"big" is no size`}},
		{name: "no level", yaml: "log: {level: loud}", want: []string{"log.level", "loud"}},
		{name: "no format", yaml: "log: {format: xml}", want: []string{"log.format", "text or json"}},
		{name: "a backend that is a path", yaml: "backend: ../x", want: []string{"backend", "../x"}},
		{name: "no models", yaml: "models: [{path: /b}]", want: []string{"models[0] has no name"}},
		{name: "two of one name", yaml: "models: [{name: a, path: /b}, {name: a, path: /c}]", want: []string{"two are named a"}},
		{name: "beyond loopback", yaml: "listen: 0.0.0.0:1", want: []string{"listen", "no authentication yet"}},
		{name: "every interface", yaml: `listen: ":1"`, want: []string{"listen", "127.0.0.1"}},
		{name: "a relative socket", yaml: "listen: unix:x", want: []string{"not absolute"}},
		{name: "no hash", yaml: "plugins: {sha256: {llama: abc}}", want: []string{"plugins.sha256.llama", "sha256sum"}},
		{name: "no limit", yaml: "limits: {sessions: 0}", want: []string{"limits.sessions", "at least 1"}},
		{name: "two ways to authenticate", yaml: "nats: {url: x, user: a, token: b}", want: []string{"exclude each other"}},
		{name: "credentials for nobody", yaml: "nats: {token: b}", want: []string{"without nats.url"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := config.Load(config.Sources{File: file(t, tt.yaml), Environ: tt.env})
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q has several lines", err)
			}
		})
	}
	if _, err := config.Load(config.Sources{File: "/none/such.yaml"}); err == nil || !strings.Contains(err.Error(), "there is no file /none/such.yaml") {
		t.Errorf("a missing file: %v", err)
	}
}

func TestDefaultModel(t *testing.T) {
	gguf := filepath.Join(t.TempDir(), "tiny.gguf")
	if err := os.WriteFile(gguf, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const two = "models: [{name: a, path: /a}, {name: b, path: /b}]\nmodel_config: {num_ctx: 512}\n"
	tests := []struct {
		name, yaml, want, path, err string
	}{
		{name: "the first one", yaml: two, want: "a", path: "/a"},
		{name: "by name", yaml: two + "model: b", want: "b", path: "/b"},
		{name: "by path", yaml: two + "model: " + gguf, want: "tiny", path: gguf},
		{name: "neither", yaml: two + "model: c", err: "none of the models (a, b) and there is no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := config.Load(config.Sources{File: file(t, tt.yaml)})
			if err != nil {
				t.Fatal(err)
			}
			models, name, err := c.DefaultModel()
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error = %v, want one that says %q", err, tt.err)
				}
				return
			}
			if err != nil || name != tt.want {
				t.Fatalf("%q, %v; want %q", name, err, tt.want)
			}
			for _, m := range models {
				if m.Name == name && m.Path != tt.path {
					t.Errorf("%s is at %s, want %s", name, m.Path, tt.path)
				}
				if m.Path == gguf && m.Config.Transport().NumCtx != 512 {
					t.Errorf("model_config was not applied: %+v", m.Config)
				}
			}
		})
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("slot: a", "nats__url=x")
	f.Add("models: [{name: a}]", "slot=b")
	f.Add("lease: {wait: 1h}", "lease__wait=")
	path := filepath.Join(f.TempDir(), "config.yaml")
	f.Fuzz(func(t *testing.T, yaml, env string) {
		if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.Load(config.Sources{File: path, Environ: []string{"MODELD_" + strings.ToUpper(env)}})
		if err == nil && (c.Slot == "" || c.Backend == "" || c.Lease.Wait < 0) {
			t.Errorf("accepted: %+v", c)
		}
	})
}
