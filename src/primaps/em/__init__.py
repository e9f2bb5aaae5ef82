"""PriMaPs-EM (section 3.2 of the paper): class prototypes fitted to features and masks."""
