"""What commands share that know models: flags that load one, jobs of many prompts, the chat in a terminal."""
