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

// A field that the defaults leave out could not be set at all.
func TestDefaultsHaveEveryField(t *testing.T) {
	c, err := config.Load(config.Sources{File: file(t, "")})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := c.Print(&out); err != nil {
		t.Fatal(err)
	}
	var check func(reflect.Type, string)
	check = func(typ reflect.Type, prefix string) {
		for i := range typ.NumField() {
			field := typ.Field(i)
			key := prefix + field.Tag.Get("koanf")
			switch {
			case !field.IsExported():
			case field.Type.Kind() == reflect.Struct && key != "model_config":
				check(field.Type, key+".")
			case lineOf(out.String(), key) == "":
				t.Errorf("%s is not among the defaults", key)
			}
		}
	}
	check(reflect.TypeFor[config.Config](), "")
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

// A variable can set a whole list or section, and one key of it.
func TestEnvironment(t *testing.T) {
	c, err := config.Load(config.Sources{File: file(t, "llama: {threads: 1, kv_split: true}\n"), Environ: []string{
		"MODELD_LLAMA__THREADS=3",
		"MODELD_LLAMA={threads: 2, lib_dir: /lib}",
		"MODELD_MODELS=[{name: a, path: /a, config: {num_ctx: 512}}]",
		"MODELD_MODEL_CONFIG__TENSOR_SPLIT=0.5,0.25",
		"MODELD_MODEL_CONFIG__FLASH_ATTN=true",
		"MODELD_PLUGINS__ENV=HF_HOME,MYRT_*",
		"MODELD_NATS__EMBEDDED__PORT=4222",
		"MODELD_NATS__TOKEN=007",
		"MODELD_NATS__URL=127.0.0.1",
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"threads": 3, "kv_split": true, "lib_dir": "/lib"}
	if got := c.PluginSettings(); !reflect.DeepEqual(got, want) {
		t.Errorf("settings of the plugin: %v, want %v", got, want)
	}
	if len(c.Models) != 1 || c.Models[0].Config.NumCtx != 512 {
		t.Errorf("models: %+v", c.Models)
	}
	if got, want := c.ModelConfig, (config.ModelConfig{TensorSplit: []float32{0.5, 0.25}, FlashAttn: true}); !reflect.DeepEqual(got, want) {
		t.Errorf("model_config: %+v, want %+v", got, want)
	}
	if got, want := c.Plugins.Env, []string{"HF_HOME", "MYRT_*"}; !reflect.DeepEqual(got, want) {
		t.Errorf("plugins.env: %q, want %q", got, want)
	}
	if c.NATS.Embedded.Port != 4222 || c.NATS.Token != "007" {
		t.Errorf("nats: %+v", c.NATS)
	}
}

// A key without a value is as if it were not there.
func TestNullChangesNothing(t *testing.T) {
	c, err := config.Load(config.Sources{File: file(t, "nats:\n  # url: x\nslot:\nmodels:\nllama: {threads: }\n")})
	if err != nil {
		t.Fatal(err)
	}
	if c.Slot != "default" || c.NATS.ConnectTimeout != 10*time.Second || len(c.PluginSettings()) != 0 {
		t.Errorf("%+v", c)
	}
}

func TestPluginSettings(t *testing.T) {
	const engine = "engine: {queue_limit: 9}\n"
	set := config.Engine{QueueLimit: 9}
	tests := []struct {
		name, yaml string
		want       map[string]any
	}{
		{"nothing set", "backend: llama", map[string]any{}},
		{"a section", "backend: openvino\nopenvino: {device: CPU}\nllama: {threads: 2}", map[string]any{"device": "CPU"}},
		{"the engine's limits", "backend: llama\n" + engine, map[string]any{"engine": set}},
		{"a third party's", "backend: acme\nbackends: {acme: {speed: 2}}\n" + engine, map[string]any{"speed": 2, "engine": set}},
		{"none has no engine", "backend: none\nnone: {echo: true}\n" + engine, map[string]any{"echo": true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := config.Load(config.Sources{File: file(t, tt.yaml)})
			if err != nil {
				t.Fatal(err)
			}
			if got := c.PluginSettings(); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
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
		{name: "neither", yaml: two + "model: c", err: "model = c (file "},
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
