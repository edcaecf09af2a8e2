# A node's bridge (address 1) with pods 2, 3 and 4, each a network namespace that answers at ports 80 and 8080. Loads the rules of $1 and prints for
# each pair and port whether a connection comes about.
mount -t tmpfs none /run
mkdir /run/netns
ip link set lo up
ip link add cni0 type bridge
ip addr add 10.244.0.1/24 dev cni0
ip link set cni0 up
within() { local pod=$1; shift; if [ "$pod" = 1 ]; then "$@"; else ip netns exec "p$pod" "$@"; fi; }
for pod in 2 3 4; do
  ip netns add "p$pod"
  ip link add "v$pod" type veth peer name eth0 netns "p$pod"
  ip link set "v$pod" master cni0 up
  ip -n "p$pod" addr add "10.244.0.$pod/24" dev eth0
  ip -n "p$pod" link set lo up
  ip -n "p$pod" link set eth0 up
done
for pod in 1 2 3 4; do
  for port in 80 8080; do
    within "$pod" socat "TCP-LISTEN:$port,fork,reuseaddr" SYSTEM:'echo yes' &
  done
done
ask() { local said; said=$(within "$1" socat -T 2 -u "TCP:10.244.0.$2:$3,connect-timeout=0.5" - 2>/dev/null) || said=no; echo "$1 $2 $3 ${said:-no}"; }
for pod in 1 2 3 4; do
  for port in 80 8080; do
    for try in $(seq 50); do [ "$(ask "$pod" "$pod" "$port" | cut -d' ' -f4)" = yes ] && break; sleep 0.1; done
  done
done
nft -f "$1"
for from in 1 2 3 4; do
  for to in 1 2 3 4; do
    for port in 80 8080; do
      [ "$from" = "$to" ] || ask "$from" "$to" "$port" &
    done
  done
done
sleep 3
