"""The verbs of the program, one function each; what they do stands in the library."""
