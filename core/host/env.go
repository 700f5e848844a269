package host

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"

	"modeld/core/plugin"
)

// defaultEnv are the host's variables that a plugin gets: what programs need
// to run at all and what compute runtimes read. Credentials and modeld's own
// settings are not among them.
var defaultEnv = []string{
	"PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_*", "TZ", "TMPDIR", "TMP", "TEMP",
	"XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
	"GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GOTRACEBACK",
	"CUDA_*", "NVIDIA_*", "HIP_*", "ROCR_*", "HSA_*", "GPU_*", "GGML_*", "VK_*", "OCL_*", "ONEAPI_*", "SYCL_*", "ZE_*",
	"OMP_*", "KMP_*", "OPENVINO_*", "OV_*",
	"SystemRoot", "SystemDrive", "PROGRAMDATA", "LOCALAPPDATA", "APPDATA", "USERPROFILE", "NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE",
}

// maxSettings is below the longest environment entry that Linux takes, 128 KiB.
const maxSettings = 100 << 10

// buildEnv picks from environ what defaultEnv and extra allow. An extra entry
// is a name, a name ending in '*', or NAME=value.
func buildEnv(environ, extra []string) ([]string, error) {
	allowed := slices.Clone(defaultEnv)
	var fixed []string
	for _, e := range extra {
		name, _, isValue := strings.Cut(e, "=")
		if _, err := path.Match(name, ""); name == "" || err != nil {
			return nil, fmt.Errorf("plugin environment: %q is neither a name, a pattern, nor NAME=value", e)
		}
		if isValue {
			fixed = append(fixed, e)
		} else {
			allowed = append(allowed, e)
		}
	}
	var env []string
	for _, e := range environ {
		name, _, _ := strings.Cut(e, "=")
		if slices.ContainsFunc(allowed, func(pattern string) bool {
			ok, _ := path.Match(pattern, name)
			return ok
		}) {
			env = append(env, e)
		}
	}
	return append(env, fixed...), nil
}

// settingsEnv passes the backend's settings and the log level.
func settingsEnv(settings any, log *slog.Logger) ([]string, error) {
	data := []byte("{}")
	if settings != nil {
		var err error
		if data, err = json.Marshal(settings); err != nil {
			return nil, fmt.Errorf("backend settings: %w", err)
		}
	}
	if len(data) > maxSettings {
		return nil, fmt.Errorf("backend settings: %d bytes of JSON, at most %d can be passed: put long values into files", len(data), maxSettings)
	}
	return []string{
		plugin.EnvConfig + "=" + string(data),
		plugin.EnvLogLevel + "=" + logLevel(log),
	}, nil
}
