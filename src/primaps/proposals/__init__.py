"""Principal mask proposals (section 3.1 of the paper): features in, masks out."""
