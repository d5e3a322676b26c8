"""Examples of applications built with Anabranch."""
