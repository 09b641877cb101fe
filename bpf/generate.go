package bpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -type refusal -go-package bpf redirect redirect.c -- -O2 -Wall -Werror -I/usr/include/x86_64-linux-gnu
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -type flow -type owner -type image -type executable -go-package bpf observe observe.c -- -O2 -Wall -Werror -I/usr/include/x86_64-linux-gnu
