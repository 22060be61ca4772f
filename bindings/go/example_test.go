package yinian_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"yinian.ai/yinian"
)

func Example() {
	engine, err := yinian.Open(yinian.Config{"model": "mock:words", "log_level": "off"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer engine.Close()
	stream, err := engine.Generate(context.Background(), yinian.Request{Prompt: "Once", MaxTokens: yinian.Ptr(8), IgnoreEOS: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	length := 0
	for chunk, err := range stream.Chunks() {
		if err != nil {
			fmt.Println(err)
			return
		}
		length += len(chunk.Text)
	}
	result, _ := stream.Result(context.Background())
	fmt.Println(length, "bytes,", result.CompletionTokens, "tokens,", result.Finish)
	// Output: 8 bytes, 8 tokens, length
}

func ExampleEngine_Generate_deadline() {
	engine, err := yinian.Open(yinian.Config{"model": "mock:words,delay_us=1000", "log_level": "off"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer engine.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	stream, err := engine.Generate(ctx, yinian.Request{Prompt: "Once", MaxTokens: yinian.Ptr(30000), IgnoreEOS: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = stream.All(context.Background())
	fmt.Println(errors.Is(err, context.DeadlineExceeded), err)
	// Output: true yinian: the request ended early: deadline
}

func ExampleEngine_Loading() {
	engine, err := yinian.Open(yinian.Config{"model": "mock:words,load_ms=50", "async_load": true, "log_level": "off"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer engine.Close()
	for progress, err := range engine.Loading(context.Background()) {
		if err != nil {
			fmt.Println(err)
			return
		}
		if progress.State == yinian.StateReady {
			fmt.Printf("%.0f %%: %s\n", 100*progress.Share, progress.Message)
		}
	}
	// Output: 100 %: ready
}

func ExampleTokenizer() {
	engine, err := yinian.Open(yinian.Config{"model": "mock:words", "log_level": "off"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer engine.Close()
	tokenizer, err := engine.Tokenizer()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer tokenizer.Close()
	ids, err := tokenizer.Encode("fox", true)
	text, _ := tokenizer.Decode(ids)
	fmt.Println(ids, text, err)
	// Output: [102 111 120] fox <nil>
}

func ExampleStatus() {
	_, err := yinian.Open(yinian.Config{"model": "mock:words", "max_num_seq": 4})
	fmt.Println(errors.Is(err, yinian.ErrInvalid))
	// Output: true
}

func ExampleLogTo() {
	handler := slog.NewTextHandler(os.Stderr, nil)
	if err := yinian.LogTo(slog.New(handler), slog.LevelWarn); err != nil {
		fmt.Println(err)
	}
	// Nothing of the library comes to the logger from here on.
	fmt.Println(yinian.LogTo(nil, slog.LevelWarn))
	// Output: <nil>
}
