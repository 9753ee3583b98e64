"""The settings of each task's runs; light to import, for the command line's help."""
