// What a token costs a Go host that reads each stream on a goroutine of its own: the twin of cost.c.
//
//	DIR=$PWD/target/release/deps
//	PKG_CONFIG=true CGO_LDFLAGS="-L$DIR -Wl,-rpath,$DIR" go build -C tests/bindings/cost_go -o "$PWD/target/cost-go"
//	tests/bindings/cost.py --library "$DIR" Go=target/cost-go
package main

// #cgo CFLAGS: -std=gnu11 -I${SRCDIR}/.. -I${SRCDIR}/../../../include
// #include "cost.h"
import "C"

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"yinian.ai/yinian"
)

func open(config string) *yinian.Engine {
	var cfg yinian.Config
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		log.Fatal(err)
	}
	engine, err := yinian.Open(cfg)
	if err != nil {
		log.Fatal(err)
	}
	return engine
}

func request(maxTokens int) yinian.Request {
	return yinian.Request{Prompt: "hello", MaxTokens: &maxTokens, IgnoreEOS: true}
}

func generate(engine *yinian.Engine, maxTokens int) *yinian.Stream {
	stream, err := engine.Generate(context.Background(), request(maxTokens))
	if err != nil {
		log.Fatal(err)
	}
	return stream
}

func tokens() {
	engine := open(C.COST_STEPS_CONFIG)
	defer engine.Close()
	var all sync.WaitGroup
	var counted, chunks atomic.Int64
	began := C.cost_process_ns()
	for i := 0; i < C.COST_STREAMS; i++ {
		stream := generate(engine, C.COST_TOKENS)
		all.Add(1)
		go func() {
			defer all.Done()
			bytes, parts := 0, 0
			for chunk, err := range stream.Chunks() {
				if err != nil {
					log.Fatal(err)
				}
				bytes += len(chunk.Text)
				parts++
			}
			if bytes != C.COST_TOKENS {
				log.Fatalf("%d bytes", bytes)
			}
			result, _ := stream.Result(context.Background())
			counted.Add(int64(result.CompletionTokens))
			chunks.Add(int64(parts))
		}()
	}
	all.Wait()
	took := C.cost_process_ns() - began
	if counted.Load() != C.COST_STREAMS*C.COST_TOKENS {
		log.Fatalf("%d tokens", counted.Load())
	}
	fmt.Printf("tokens: %d in %d chunks\n", counted.Load(), chunks.Load())
	fmt.Printf("CPU ns per token: %.1f\n", float64(took)/float64(counted.Load()))
}

func wakeups() {
	engine := open(C.COST_PING_CONFIG)
	defer engine.Close()
	took := make([]time.Duration, C.COST_PINGS)
	for i := range took {
		time.Sleep(C.COST_PAUSE_US * time.Microsecond)
		began := time.Now()
		stream := generate(engine, 1)
		if _, err := stream.Next(context.Background()); err != nil {
			log.Fatal(err)
		}
		took[i] = time.Since(began)
		if _, err := stream.Result(context.Background()); err != nil {
			log.Fatal(err)
		}
	}
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	us := func(share int) float64 { return float64(took[len(took)*share/100]) / 1e3 }
	fmt.Printf("wake-up us: p50 %.1f p99 %.1f\n", us(50), us(99))
}

func main() {
	tokens()
	wakeups()
}
