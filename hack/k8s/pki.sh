# Certificates (ECDSA P-256, one authority) and kubeconfigs. Sourced by hack/kubernetes.
# shellcheck shell=bash

new_key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)

make_pki() { # NODE...
    local node address
    printf '[req]\ndistinguished_name = name\n[name]\n' >"$PKI/openssl.cnf" # no extensions but those asked for
    openssl req -x509 -config "$PKI/openssl.cnf" "${new_key[@]}" -keyout "$PKI/ca.key" -out "$PKI/ca.crt" -days 3650 \
        -subj "/CN=$NAME" -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$PKI/service-accounts.key"
    openssl pkey -in "$PKI/service-accounts.key" -pubout -out "$PKI/service-accounts.pub"

    local service=kubernetes.default.svc
    certificate apiserver /CN=kube-apiserver "DNS:kubernetes,DNS:kubernetes.default,DNS:$service,DNS:$service.cluster.local,DNS:localhost,IP:127.0.0.1,IP:::1,IP:$UNDERLAY4.1,IP:$UNDERLAY6:1,IP:$API_ADDRESS,IP:10.96.0.1,IP:fd00:96::1"
    certificate apiserver-to-kubelet /O=system:masters/CN=apiserver-to-kubelet
    client admin /O=system:masters/CN=admin
    client controller-manager /CN=system:kube-controller-manager
    client scheduler /CN=system:kube-scheduler
    client kube-proxy /CN=system:kube-proxy
    for node in "$@"; do
        address="IP:$(node4 "$node"),IP:$(node6 "$node")"
        client "kubelet-$node" "/O=system:nodes/CN=system:node:$node" "DNS:$node,$address" # it serves with it too
    done
}

certificate() { # NAME SUBJECT [ALTERNATIVE NAMES]
    local usage=clientAuth names=()
    [ -z "${3:-}" ] || { usage=clientAuth,serverAuth; names=(-addext "subjectAltName=$3"); }
    openssl req -x509 -config "$PKI/openssl.cnf" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" "${new_key[@]}" \
        -keyout "$PKI/$1.key" -out "$PKI/$1.crt" -days 3650 -subj "$2" -addext basicConstraints=critical,CA:FALSE \
        -addext keyUsage=critical,digitalSignature -addext "extendedKeyUsage=$usage" "${names[@]}" 2>/dev/null
}

client() { # NAME SUBJECT [ALTERNATIVE NAMES]: a certificate, and a kubeconfig that holds it
    certificate "$@"
    cat >"$CONF/$1.kubeconfig" <<Y
apiVersion: v1
kind: Config
clusters:
- name: $NAME
  cluster:
    server: $API
    certificate-authority-data: $(base64 -w0 "$PKI/ca.crt")
users:
- name: $1
  user:
    client-certificate-data: $(base64 -w0 "$PKI/$1.crt")
    client-key-data: $(base64 -w0 "$PKI/$1.key")
contexts:
- name: $NAME
  context: {cluster: $NAME, user: $1}
current-context: $NAME
Y
    chmod 600 "$CONF/$1.kubeconfig"
}
