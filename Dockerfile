# The plugin's root file system: the interpreter, our packages, and the shared libraries that both need. No shell,
# no package manager, nothing set-uid: what has CAP_SYS_ADMIN on somebody's host should hold nothing else.
# `plugin/build.py` prepares the context (build/plugin/context) and runs this on a pulled base where there is a
# registry and on a home-made one where there is none. Both are bookworm, so both have Python 3.11.
ARG BASE=debian:12-slim

FROM ${BASE} AS system
RUN command -v python3 >/dev/null || { apt-get update && apt-get install -y --no-install-recommends python3; }

# The standard library without what a daemon never imports, and without its bytecode, which is made below.
FROM system AS root
WORKDIR /root-fs
RUN set -eu; \
    mkdir -p -m 755 data/published dev etc hostfs proc run/docker/plugins sys usr/bin usr/lib usr/local/lib/python3.11; \
    mkdir -m 1777 tmp; \
    cp -a /bin /lib /lib*64 .; \
    cp -a /etc/passwd /etc/group /etc/nsswitch.conf etc; \
    cp -a /usr/bin/python3 /usr/bin/python3.11 usr/bin; \
    cp -a /usr/lib/python3.11 usr/lib; \
    cd usr/lib/python3.11; \
    rm -rf config-3.11-* curses dbm distutils idlelib lib2to3 pydoc_data test tkinter turtle.py turtledemo \
        unittest/test venv xmlrpc _pydecimal.py; \
    rm -f lib-dynload/_codecs_* lib-dynload/_curses* lib-dynload/_dbm.* lib-dynload/_gdbm.* lib-dynload/*test* \
        lib-dynload/nis.* lib-dynload/readline.* lib-dynload/xx*; \
    find . -name __pycache__ -prune -exec rm -r {} +
COPY dependencies usr/local/lib/python3.11/dist-packages
# Of AWS's services only those that S3 and its credentials need: botocore describes four hundred. And its certificate
# authorities are those of the whole image, since obstore looks for them in the system's place.
RUN set -eu; \
    mkdir -p etc/ssl/certs; \
    cd usr/local/lib/python3.11/dist-packages/botocore; \
    mv cacert.pem /root-fs/etc/ssl/certs/ca-certificates.crt; \
    ln -s /etc/ssl/certs/ca-certificates.crt cacert.pem; \
    find data -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} +
# Nor is anything of the packages wanted that is for their own tests, or for other services.
RUN set -eu; \
    cd usr/local/lib/python3.11/dist-packages; \
    find boto3/data -mindepth 1 -maxdepth 1 -type d ! -name s3 -exec rm -r {} +; \
    rm -r alembic/testing cheroot/test obstore-*.dist-info/sboms pyroute2/dhcp sqlalchemy/testing *.dist-info/RECORD; \
    find . -name '*.pyi' -delete
# Bytecode is never checked against its source: nothing here changes, and start-up saves a stat per module. Made by
# one process with one seed, it is the same at each build.
RUN set -eu; \
    mkdir -p usr/lib64; \
    find usr -name '*.so' | xargs ldd /usr/bin/python3.11 | sed -n 's/.*[[:space:]]\(\/[^ ]*\) (0x.*/\1/p' | sort -u \
        | grep -v ^/root-fs/ | xargs cp -L --parents -t .; \
    chroot . /usr/bin/python3 -B -c 'import ctypes, msgspec, psycopg, pyroute2, sqlite3, ssl; \
        import boto3, obstore.store; boto3.client("s3", "x"); obstore.store.S3Store("b", region="x")'; \
    PYTHONHASHSEED=0 python3 -m compileall -q --invalidation-mode unchecked-hash -s /root-fs -p / usr
# What of Debian is in here, for the list of what the plugin consists of. A merged /usr has two names for each file.
RUN set -eu; \
    mkdir -p usr/share/brokervol; \
    find usr/bin usr/lib* -type f ! -path '*/dist-packages/*' ! -name '*.pyc' | sed 'p; s/^usr//; t; d' | sed 's|^usr|/usr|' \
        | xargs dpkg-query -S 2>/dev/null | sed 's/: .*//; s/, /\n/g' | sort -u \
        | xargs dpkg-query -W -f '${Package} ${Version} ${Architecture}\n' > usr/share/brokervol/debian-packages
COPY brokervol usr/local/lib/python3.11/dist-packages
RUN set -eu; \
    cd usr/local/lib/python3.11/dist-packages; \
    rm -r storage/testing; \
    PYTHONHASHSEED=0 python3 -m compileall -q --invalidation-mode unchecked-hash -s /root-fs -p / \
        "$PWD/brokervol" "$PWD/sidecar" "$PWD/storage" "$PWD/volumedriver"

FROM scratch
COPY --from=root /root-fs /
ENTRYPOINT ["/usr/bin/python3", "-m", "brokervol", "daemon"]
