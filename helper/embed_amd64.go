package helper

import _ "embed" // for go:embed

var (
	//go:embed credential_amd64.elf
	credential []byte

	//go:embed init_amd64.elf
	initial []byte
)
