"""What can be built with Anabranch; nothing of the project imports it."""
