package runtime

func play(role string) int { return 1 }
