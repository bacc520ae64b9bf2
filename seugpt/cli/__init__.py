"""Options from config files and the command line, and how a command ends."""
