"""A plan meets a runtime: live torch models and other runtimes' own files. torch is imported when first needed."""
