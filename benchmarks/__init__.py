"""How fast, and with how much memory: our networks beside PyTorch's, each in a process of its own."""
