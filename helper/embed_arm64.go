package helper

import _ "embed" // for go:embed

//go:embed credential_arm64.elf
var credential []byte
