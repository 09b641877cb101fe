package helper

// One segment holds the code and what it reads, since each costs a start; no note says where it was built.
//go:generate -command image clang-14 -std=c11 -Os -Wall -Wextra -Werror -ffreestanding -fno-pic -fno-stack-protector -fno-asynchronous-unwind-tables -nostdlib -static -fuse-ld=lld -Wl,--no-rosegment,--build-id=none,--strip-all
//go:generate image --target=x86_64-linux-gnu -o credential_amd64.elf credential.c
//go:generate image --target=aarch64-linux-gnu -o credential_arm64.elf credential.c
//go:generate image --target=x86_64-linux-gnu -o init_amd64.elf init.c
//go:generate image --target=aarch64-linux-gnu -o init_arm64.elf init.c
