package main

// sysSeccomp is the number of seccomp(2).
const sysSeccomp = 317
