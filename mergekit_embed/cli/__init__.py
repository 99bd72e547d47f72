"""The commands. One thin module each: options in, a few lines over a function, words out."""
