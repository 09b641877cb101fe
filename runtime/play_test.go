package runtime

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// play is this test binary in another role than a test's: "agent" creates the
// container that stdin describes, says its PID, and waits; "claim" takes a claim
// likewise and waits to be killed.
func play(role string) int {
	switch role {
	case "agent":
		return playAgent(false)
	case "claim":
		return playAgent(true)
	case "terminal": // on descriptor 3
		return playAgent(false)
	}
	return 1
}

// scene is what stdin describes.
type scene struct {
	RunDir string
	Config Config
}

func playAgent(claim bool) int {
	var play scene
	if err := json.NewDecoder(os.Stdin).Decode(&play); err != nil {
		fmt.Println(err)
		return 1
	}
	cfg := play.Config
	if claim {
		c, err := TakeClaim(play.RunDir, "killed", Record{ID: cfg.ID, PID: os.Getpid(), Folder: cfg.Folder})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		cfg.Live = c.Dir()
	}
	cfg.Stdout = os.Stdout
	if cfg.Terminal {
		tty := os.NewFile(3, "terminal")
		cfg.Stdin, cfg.Stdout = tty, tty
	}
	c, err := Create(cfg)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer c.Close()
	if err := c.Start(); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(c.PID())
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}
