package helper

import _ "embed" // for go:embed

var (
	//go:embed credential_arm64.elf
	credential []byte

	//go:embed init_arm64.elf
	initial []byte
)
