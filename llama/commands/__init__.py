"""What commands share that know models: flags that load one, and the chat in a terminal."""
