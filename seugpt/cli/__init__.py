"""Options from config files and the command line, and what a command says when it ends."""
