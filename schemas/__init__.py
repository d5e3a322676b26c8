"""Wire messages, internal records and wire errors; imports no other package of Anabranch."""
