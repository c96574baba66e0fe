"""What the server's packages are named by: read here, checked line by line, and compared with what
is installed there."""
