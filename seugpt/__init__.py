"""What stands behind the commands, one package for each subject. Nothing here is run by hand."""
