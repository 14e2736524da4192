"""What a user or a backend author tests with."""
