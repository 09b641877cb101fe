package runtime

//go:generate go run generate_calls.go
