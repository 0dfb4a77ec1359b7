// The official Go SDK's EnvironmentWorker, unmodified, as one program: what `ant beta:worker poll` wraps.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	anthropic "github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/lib/environments"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	client := anthropic.NewClient()
	worker := environments.NewEnvironmentWorker(client, environments.EnvironmentWorkerOptions{
		EnvironmentID:  os.Getenv("ANTHROPIC_ENVIRONMENT_ID"),
		EnvironmentKey: os.Getenv("ANTHROPIC_ENVIRONMENT_KEY"),
		Workdir:        os.Args[1],
	})
	if err := worker.Run(ctx); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
