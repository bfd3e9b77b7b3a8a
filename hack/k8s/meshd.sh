# Installs meshd on a cluster as its users do: an image, and the chart. Sourced by hack/kubernetes.
# shellcheck shell=bash

cmd_install() {
    local profile=release archive existed=0 name
    while [ $# -gt 0 ]; do
        case $1 in
            --profile) profile=${2:?--profile is release or dev}; shift 2 ;;
            --) shift; break ;;
            *) break ;;
        esac
    done
    load_cluster
    [ "$CNI_CHOICE" = none ] || die "'$NAME' has the reference network: bring a cluster up without --cni"
    say "making the image"
    archive=$("$ROOT/hack/image" --profile "$profile" --tag "$NAME" | cut -d' ' -f1)
    cmd_load "$archive"
    [ -z "$(cmd_helm list -n kube-system -q -f '^meshd$')" ] || existed=1
    # The API server is named, because kube-proxy may not be there.
    cmd_helm upgrade --install meshd "$ROOT/deploy/chart" --namespace kube-system --set "config.cluster_pod_cidrs={$PODS}" \
        --set "config.service_cidrs={$SERVICES}" --set "apiServer.host=$API_ADDRESS" --set image.tag="$NAME" "$@" >"$STATE/helm.out"
    [ $existed = 0 ] || kubectl -n kube-system rollout restart daemonset/meshd # the tag is the same, what it means is not
    for name in daemonset/meshd deployment/coredns; do
        kubectl -n kube-system rollout status "$name" --timeout=180s >/dev/null ||
            die "$name is not ready: hack/kubernetes --name $NAME kubectl -n kube-system describe $name"
    done
    kubectl wait --for=condition=Ready nodes --all --timeout=60s >/dev/null
    say "meshd runs on all nodes"
}
