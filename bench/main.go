// Command bench measures modeld against the bare parts under it, in one run,
// interleaved, and writes what it found to a JSON file. Run it by `make bench`
// on a machine that does nothing else: figures are medians, and ratios are
// medians of the ratios of neighbouring rounds.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"time"
)

// bench is one run.
type bench struct {
	bin    string // the built modeld
	libDir string // llama.cpp's libraries
	model  string // the GGUF file
	rounds int
	report report
}

// report is what the JSON file holds.
type report struct {
	Time    time.Time `json:"time"`
	Machine machine   `json:"machine"`
	Rounds  int       `json:"rounds"`
	Results []result  `json:"results"`
}

type machine struct {
	OS    string `json:"os"`
	Arch  string `json:"arch"`
	Cores int    `json:"cores"`
	Go    string `json:"go"`
}

// result is one figure. Bare and Ratio are zero where nothing is compared.
type result struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	Modeld float64 `json:"modeld"`
	Bare   float64 `json:"bare,omitempty"`
	// Ratio is modeld/bare.
	Ratio float64 `json:"ratio,omitempty"`
	Goal  string  `json:"goal,omitempty"`
	Note  string  `json:"note,omitempty"`
}

func main() {
	// The bare stream's server is this program once more.
	if len(os.Args) == 3 && os.Args[1] == bareServerArg {
		if err := serveBareStream(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "bench: bare stream server:", err)
			os.Exit(1)
		}
		return
	}
	b := &bench{}
	var out string
	flag.StringVar(&b.bin, "bin", "bin/modeld", "the built modeld, with its plugins beside it")
	flag.StringVar(&b.libDir, "lib", "bin/lib/llama", "llama.cpp's libraries")
	flag.StringVar(&b.model, "model", "", "the GGUF model (required)")
	flag.IntVar(&b.rounds, "rounds", 9, "rounds of each comparison")
	flag.StringVar(&out, "out", "bench/results.json", "where to write the results")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := b.run(ctx, out)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context, out string) error {
	if b.model == "" {
		return errors.New("-model is required; `make bench` passes the test model")
	}
	var err error
	for _, p := range []*string{&b.bin, &b.libDir, &b.model} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
		if _, err := os.Stat(*p); err != nil {
			return fmt.Errorf("%w; run make build", err)
		}
	}
	b.report = report{
		Time: time.Now().UTC(), Rounds: b.rounds,
		Machine: machine{runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version()},
	}
	for _, part := range []func(context.Context) error{b.session, b.wire} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	data, err := json.MarshalIndent(b.report, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(out, append(data, '\n'), 0o644); err != nil {
		return err
	}
	fmt.Println("written to", out)
	return nil
}

// add records a figure and prints it as a row of the table.
func (b *bench) add(r result) {
	if len(b.report.Results) == 0 {
		fmt.Printf("%-44s %12s %12s %8s  %s\n", "", "modeld", "bare", "ratio", "goal")
	}
	b.report.Results = append(b.report.Results, r)
	bare, ratio := "", ""
	if r.Bare != 0 {
		bare, ratio = format(r.Bare), fmt.Sprintf("%.3f", r.Ratio)
	}
	fmt.Printf("%-44s %12s %12s %8s  %s\n", r.Name+", "+r.Unit, format(r.Modeld), bare, ratio, r.Goal)
}

func format(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// pairs are interleaved measurements of modeld and of what it is held against.
type pairs struct{ modeld, bare []float64 }

// measure runs both sides in every round, the first of the two by turns.
func measure(rounds int, modeld, bare func() (float64, error)) (pairs, error) {
	var p pairs
	for round := range rounds + 1 {
		var m, r float64
		var err error
		if round%2 == 0 {
			if m, err = modeld(); err != nil {
				return p, err
			}
		}
		if r, err = bare(); err != nil {
			return p, err
		}
		if round%2 == 1 {
			if m, err = modeld(); err != nil {
				return p, err
			}
		}
		if round > 0 { // the first warms caches up
			p.modeld, p.bare = append(p.modeld, m), append(p.bare, r)
		}
	}
	return p, nil
}

func (p pairs) result(name, unit, goal string) result {
	ratios := make([]float64, len(p.modeld))
	for i := range ratios {
		ratios[i] = p.modeld[i] / p.bare[i]
	}
	return result{Name: name, Unit: unit, Goal: goal, Modeld: median(p.modeld), Bare: median(p.bare), Ratio: median(ratios)}
}
