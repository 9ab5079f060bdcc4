"""The rate-distortion study: what each block costs against GDN."""
