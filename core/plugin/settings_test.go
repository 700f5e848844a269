package plugin

import (
	"strings"
	"testing"
)

type testSettings struct {
	Echo  bool    `json:"echo"`
	Rate  float64 `json:"tokens_per_second"`
	Files []struct {
		Path string `json:"path"`
	} `json:"files"`
	Cache struct {
		Blocks int `json:"blocks"`
	} `json:"cache"`
	Labels map[string]string `json:"labels"`
	hidden int               //nolint:unused // unexported fields are no settings
}

func TestSettings(t *testing.T) {
	tests := []struct {
		name, json, wantErr string
	}{
		{"all known", `{"echo":true,"tokens_per_second":2.5,"files":[{"path":"a"}],"cache":{"blocks":3},"labels":{"any":"x"}}`, ""},
		{"empty", `{}`, ""},
		{"unknown", `{"ecko":true}`, `backend settings: unknown key "ecko": the nearest known one is "echo"`},
		{"case counts", `{"Echo":true}`, `backend settings: unknown key "Echo": the nearest known one is "echo"`},
		{"nested", `{"cache":{"block":1}}`, `backend settings: unknown key "cache.block": the nearest known one is "cache.blocks"`},
		{"in a list", `{"files":[{"path":"a"},{"pth":"b"}]}`, `backend settings: unknown key "files[1].pth": the nearest known one is "files[1].path"`},
		{"unexported", `{"hidden":1}`, `backend settings: unknown key "hidden"`},
		{"wrong type", `{"cache":{"blocks":"three"}}`, `backend settings: cache.blocks must be of type int, not a JSON string`},
		{"no object", `[1]`, `backend settings: MODELD_PLUGIN_CONFIG must be a JSON object`},
		{"no JSON", `{"echo"`, `backend settings: MODELD_PLUGIN_CONFIG is not valid JSON`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(EnvConfig, tt.json)
			var s testSettings
			err := Settings(&s)
			switch {
			case tt.wantErr == "" && err != nil:
				t.Fatalf("Settings: %v", err)
			case tt.wantErr != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.wantErr)):
				t.Fatalf("Settings = %v, want %q", err, tt.wantErr)
			}
		})
	}
}

func TestSettingsKeepsDefaults(t *testing.T) {
	t.Setenv(EnvConfig, `{"echo":true}`)
	s := testSettings{Rate: 7}
	if err := Settings(&s); err != nil {
		t.Fatal(err)
	}
	if !s.Echo || s.Rate != 7 {
		t.Errorf("got %+v, want echo set and the default rate kept", s)
	}
}

func FuzzDecodeSettings(f *testing.F) {
	f.Add([]byte(`{"echo":true,"files":[{"path":"a"}]}`))
	f.Add([]byte(`{"cache":{"block":1}}`))
	f.Add([]byte(`{"files":{"path":1}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var s testSettings
		_ = decodeSettings(data, &s)
	})
}
