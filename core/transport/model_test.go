package transport

import "testing"

func TestResolvePlannerEffectiveContext(t *testing.T) {
	info := func(planner, ceiling int) ModelInfo {
		return ModelInfo{PlannerEffectiveContext: planner, ModelMaxContext: ceiling}
	}
	for _, c := range []struct {
		name              string
		requested, numCtx int
		info              ModelInfo
		want              int
	}{
		{"nothing known", 0, 0, info(0, 0), 0},
		{"requested", 8192, 4096, info(6000, 32768), 8192},
		{"else the model's", 0, 4096, info(6000, 32768), 6000},
		{"else the session's", 0, 4096, info(0, 32768), 4096},
		{"a negative request is none", -1, 4096, info(6000, 0), 6000},
		{"at most the model's ceiling", 100_000, 4096, info(0, 32768), 32768},
		{"no ceiling known", 100_000, 4096, info(0, 0), 100_000},
		{"at least the session's", 1000, 4096, info(0, 32768), 4096},
		{"the session's beyond the ceiling wins", 0, 4096, info(0, 2048), 4096},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := ResolvePlannerEffectiveContext(c.requested, c.numCtx, c.info); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}
