// Prints what tests/bindings/host.rs asks for too. Its arguments are models.
package main

import (
	"context"
	"fmt"
	"os"
	"yinian.ai/yinian"
)

func answer(model string) (string, error) {
	engine, err := yinian.Open(yinian.Config{"model": model, "log_level": "off"})
	if err != nil {
		return "", err
	}
	defer engine.Close()
	ctx := context.Background()
	stream, err := engine.Generate(ctx, yinian.Request{
		Prompt: "Once upon a time", MaxTokens: yinian.Ptr(48), Temperature: yinian.Ptr(float32(0)), IgnoreEOS: true,
	})
	if err != nil {
		return "", err
	}
	return stream.All(ctx)
}

func main() {
	for _, model := range os.Args[1:] {
		text, err := answer(model)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Print(text)
	}
}
