"""What stands behind the commands, one package per subject. Nothing here is run by hand."""
