"""The operators in models of other libraries, by one line each."""
