/* BCC's bpf.h includes this header; only hand-made instructions need it. */
