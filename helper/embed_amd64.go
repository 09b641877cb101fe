package helper

import _ "embed" // for go:embed

//go:embed credential_amd64.elf
var credential []byte
