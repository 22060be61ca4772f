package yinian

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// soakSeconds is YINIAN_SOAK_SECONDS, 600 for a night's run.
func soakSeconds(t *testing.T) time.Duration {
	text := os.Getenv("YINIAN_SOAK_SECONDS")
	if text == "" {
		return 3 * time.Second
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		t.Fatal("YINIAN_SOAK_SECONDS:", err)
	}
	return time.Duration(n) * time.Second
}

// residentBytes is what the process holds when Go has given back what it can.
func residentBytes(t *testing.T) int {
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * os.Getpagesize()
}

// soak is one engine under a thousand streams.
type soak struct {
	engine   *Engine
	alone    []string // what short(i) says
	accepted atomic.Uint64
	ends     [8]atomic.Uint64 // by Finish
}

const soakStreams = 1000

// readers are ways to treat a stream; each leaves it to end by itself or makes it end.
var readers = []func(s *Stream, rng *rand.Rand, cancel context.CancelFunc) (text string, err error){
	func(s *Stream, _ *rand.Rand, _ context.CancelFunc) (string, error) { return s.All(background) },
	func(s *Stream, _ *rand.Rand, _ context.CancelFunc) (text string, err error) {
		for chunk, err := range s.Chunks() {
			if err != nil {
				return text, err
			}
			text += chunk.Text
		}
		return text, nil
	},
	func(s *Stream, rng *rand.Rand, _ context.CancelFunc) (text string, err error) { // slow
		for chunk, err := range s.Chunks() {
			if err != nil {
				return text, err
			}
			text += chunk.Text
			time.Sleep(time.Duration(rng.Intn(5000)) * time.Microsecond)
		}
		return text, nil
	},
	func(s *Stream, rng *rand.Rand, cancel context.CancelFunc) (string, error) { // disconnects
		time.AfterFunc(time.Duration(rng.Intn(20000))*time.Microsecond, cancel)
		return s.All(background)
	},
	func(s *Stream, rng *rand.Rand, _ context.CancelFunc) (string, error) { // cancels
		time.Sleep(time.Duration(rng.Intn(5000)) * time.Microsecond)
		s.Cancel()
		return s.All(background)
	},
	func(s *Stream, _ *rand.Rand, _ context.CancelFunc) (string, error) { // leaves
		for range s.Chunks() {
			break
		}
		return "", errLeft
	},
	func(*Stream, *rand.Rand, context.CancelFunc) (string, error) { return "", errLeft }, // never reads
}

var errLeft = errors.New("not read to the end")

// one runs a stream to its end and says what is wrong with it.
func (k *soak) one(i int, rng *rand.Rand) error {
	ctx, cancel := context.WithCancel(background)
	if rng.Intn(8) == 0 {
		ctx, cancel = context.WithTimeout(background, time.Duration(1+rng.Intn(30))*time.Millisecond)
	}
	defer cancel()
	r := short(i % len(k.alone))
	r.FinalOnly = rng.Intn(4) == 0
	s, err := k.engine.Generate(ctx, r)
	if err != nil {
		gone := errors.Is(err, ErrShutdown) || errors.Is(err, ErrBadHandle) || errors.Is(err, context.DeadlineExceeded)
		if gone {
			return nil
		}
		return fmt.Errorf("Generate: %w", err)
	}
	k.accepted.Add(1)
	text, err := readers[rng.Intn(len(readers))](s, rng, cancel)
	limit, stop := context.WithTimeout(background, 20*time.Second)
	defer stop()
	end, endless := s.Result(limit)
	if endless != nil {
		return fmt.Errorf("no end: %w", endless)
	}
	k.ends[end.Finish].Add(1)
	whole := k.alone[i%len(k.alone)]
	switch {
	case end.Finish != FinishLength && end.Finish != FinishCancelled && end.Finish != FinishDeadline:
		return fmt.Errorf("ended with %v, %w", end.Finish.String(), err)
	case err == nil && (text != whole || end.Finish != FinishLength):
		return fmt.Errorf("%q is not %q, %v", text, whole, end)
	case err != nil && err != errLeft && !errors.Is(err, end.Finish):
		return fmt.Errorf("%w, and the end is %v", err, end.Finish.String())
	case !strings.HasPrefix(whole, text):
		return fmt.Errorf("%q does not begin with %q", whole, text)
	}
	return nil
}

// round has a thousand streams, and at their end or in their middle closes the engine.
func (k *soak) round(t *testing.T, seed int64) {
	var err error
	cfg := Config{"model": "mock:words,delay_us=100", "max_num_seqs": 128, "max_waiting": soakStreams, "log_level": "off"}
	if k.engine, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	defer k.engine.Close()
	var all sync.WaitGroup
	for i := 0; i < soakStreams; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			if err := k.one(i, rand.New(rand.NewSource(seed+int64(i)))); err != nil {
				t.Errorf("seed %d, stream %d: %v", seed, i, err)
			}
		}()
	}
	if seed%2 == 0 {
		time.Sleep(time.Duration(seed%7) * 10 * time.Millisecond)
		k.engine.Close()
	}
	all.Wait()
	if seed%2 != 0 {
		waitIdle(t, k.engine)
		// The last DONE may be read before it is counted.
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			s, err := k.engine.Stats()
			if err == nil && s.Finished == k.accepted.Load() {
				break
			}
			if err != nil || time.Now().After(end) {
				t.Fatal(s, err, k.accepted.Load(), "were accepted")
			}
		}
	}
	k.engine.Close()
	if len(k.engine.streams) != 0 {
		t.Error(len(k.engine.streams), "streams are left")
	}
}

// TestSoak runs in a process of its own, whose allocator gives memory back: many arenas grow for long without a leak.
func TestSoak(t *testing.T) {
	if os.Getenv("MALLOC_ARENA_MAX") != "1" {
		again := exec.Command(os.Args[0], "-test.run=^TestSoak$", "-test.v")
		again.Env = append(os.Environ(), "MALLOC_ARENA_MAX=1", "MALLOC_TRIM_THRESHOLD_=65536", "MALLOC_MMAP_THRESHOLD_=65536")
		out, err := again.CombinedOutput()
		t.Logf("%.4000s", out)
		if err != nil {
			t.Error(err)
		}
		return
	}
	var alone []string
	e := open(t, "mock:words")
	for i := 0; i < 50; i++ {
		text, err := generate(t, e, background, short(i)).All(background)
		if err != nil {
			t.Fatal(err)
		}
		alone = append(alone, text)
	}
	e.Close()
	(&soak{alone: alone}).round(t, 1) // Go's poller opens files of its own when it is first needed
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	var ends [8]uint64
	rounds, warm := int64(0), 0
	for end := time.Now().Add(soakSeconds(t)); (time.Now().Before(end) || rounds < 6) && !t.Failed(); rounds++ {
		k := &soak{alone: alone}
		k.round(t, 1+rounds*soakStreams+rounds%2)
		for i := range ends {
			ends[i] += k.ends[i].Load()
		}
		for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > goroutines || openFiles(t) > files; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal(runtime.NumGoroutine(), "goroutines, before", goroutines, "and", openFiles(t), "files, before", files)
			}
		}
		if rounds == 3 {
			warm = residentBytes(t)
		}
	}
	last := residentBytes(t)
	t.Logf("%d rounds of %d streams, ends by Finish %v; %d KiB resident after 4 rounds, %d KiB at the end", rounds, soakStreams, ends, warm>>10, last>>10)
	if last > warm+8<<20 && !raceDetector {
		t.Errorf("resident memory grows from %d to %d KiB", warm>>10, last>>10)
	}
	for _, f := range []Finish{FinishLength, FinishCancelled, FinishDeadline} {
		if ends[f] == 0 {
			t.Error("no stream ended with", f.String())
		}
	}
}
