//! A small program's memory, and what is found when single words of it are wrong.
