// SPDX-License-Identifier: Apache-2.0

package pahogo

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

func TestQoSIsTheLowerOfPublishedAndGranted(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint) {
		publisher := connect(t, version)
		for published := byte(0); published <= 2; published++ {
			for granted := byte(0); granted <= 2; granted++ {
				topic := unique("t/")
				subscriber := connect(t, version)
				subscriber.subscribe(topic, granted)
				// the second is the fence: a duplicate of the first comes before it
				payloads := []string{"x", "end"}
				for _, payload := range payloads {
					publisher.publish(topic, published, false, payload)
				}
				for _, payload := range payloads {
					got := subscriber.receive()
					if got.Qos() != min(published, granted) || got.Topic() != topic || string(got.Payload()) != payload {
						t.Errorf("%d to %d: got %s at QoS %d on %s", published, granted, got.Payload(), got.Qos(), got.Topic())
					}
				}
			}
		}
	})
}

func TestOrder(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint) {
		for qos := byte(0); qos <= 2; qos++ {
			topic, payloads := unique("t/"), append(upTo(many(2000)), "end")
			subscriber, publisher := connect(t, version), connect(t, version)
			subscriber.subscribe(topic, qos)
			for _, payload := range payloads {
				publisher.Publish(topic, qos, false, payload)
			}
			subscriber.receiveInOrder(payloads)
		}
	})
}

func TestManyTopicsComeBackOnce(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint) {
		count := many(10_000)
		base := unique("t/")
		subscriber, publisher := connect(t, version), connect(t, version)
		subscriber.subscribe(base+"/#", 1)
		fence := base + "/end"
		for _, number := range upTo(count) {
			publisher.Publish(base+"/"+number, 1, false, base+"/"+number)
		}
		publisher.publish(fence, 1, false, fence)
		seen := map[string]bool{}
		for got := subscriber.receive(); got.Topic() != fence; got = subscriber.receive() {
			if got.Topic() != string(got.Payload()) || seen[got.Topic()] {
				t.Fatalf("%s on %s, seen before: %v", got.Payload(), got.Topic(), seen[got.Topic()])
			}
			seen[got.Topic()] = true
		}
		if len(seen) != count {
			t.Errorf("%d of %d topics came back", len(seen), count)
		}
	})
}

func TestRetained(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint) {
		topic := unique("t/")
		publisher := connect(t, version)
		publisher.publish(topic, 1, true, "kept")
		first := connect(t, version)
		first.subscribe(topic, 1)
		if got := first.receive(); !got.Retained() || string(got.Payload()) != "kept" {
			t.Errorf("got %q, retained %v", got.Payload(), got.Retained())
		}
		publisher.publish(topic, 1, true, "")
		second := connect(t, version)
		second.subscribe(topic, 1)
		publisher.publish(topic, 1, false, "live")
		if got := second.receive(); got.Retained() || string(got.Payload()) != "live" {
			t.Errorf("got %q, retained %v", got.Payload(), got.Retained())
		}
	})
}

func TestWillOfADroppedConnection(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint) {
		for _, retained := range []bool{false, true} {
			topic := unique("t/")
			watcher := connect(t, version)
			watcher.subscribe(topic, 1)
			var dropped net.Conn
			connect(t, version, func(options *mqtt.ClientOptions) {
				options.SetWill(topic, "gone", 1, retained)
				options.SetCustomOpenConnectionFn(func(_ *url.URL, _ mqtt.ClientOptions) (net.Conn, error) {
					connection, err := net.DialTimeout("tcp", address, deadline)
					dropped = connection
					return connection, err
				})
			})
			if err := dropped.Close(); err != nil {
				t.Fatal(err)
			}
			if got := watcher.receive(); string(got.Payload()) != "gone" || got.Retained() {
				t.Errorf("got %q, retained %v", got.Payload(), got.Retained())
			}
			late := connect(t, version)
			late.subscribe(topic, 1)
			if retained {
				if got := late.receive(); string(got.Payload()) != "gone" || !got.Retained() {
					t.Errorf("late: got %q, retained %v", got.Payload(), got.Retained())
				}
			}
			late.publish(topic, 1, false, "live")
			late.receiveInOrder([]string{"live"})
		}
	})
}

func TestSessionKeepsWhatComesMeanwhile(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint) {
		topic, id := unique("t/"), unique("g")
		persistent := func(options *mqtt.ClientOptions) { options.SetClientID(id).SetCleanSession(false) }
		publisher := connect(t, version)
		sleeper := connect(t, version, persistent)
		if sleeper.resumed {
			t.Error("a new session was present")
		}
		sleeper.subscribe(topic, 2)
		sleeper.Disconnect(250)
		payloads := append(upTo(50), "end")
		for number, payload := range payloads[:50] {
			publisher.publish(topic, 1+byte(number%2), false, payload)
		}
		woken := connect(t, version, persistent)
		// 3.1 has no such flag
		if woken.resumed != (version == 4) {
			t.Errorf("session present: %v", woken.resumed)
		}
		publisher.publish(topic, 2, false, payloads[50])
		woken.receiveInOrder(payloads)
	})
}

func TestTakeOver(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint) {
		topic, id := unique("t/"), unique("g")
		lost := make(chan error, 1)
		connect(t, version, func(options *mqtt.ClientOptions) {
			options.SetClientID(id).SetConnectionLostHandler(func(_ mqtt.Client, err error) { lost <- err })
		})
		heir := connect(t, version, func(options *mqtt.ClientOptions) { options.SetClientID(id) })
		select {
		case <-lost:
		case <-time.After(deadline):
			t.Fatal("the old connection stayed open")
		}
		// the end of the old one must not take the new one with it
		heir.subscribe(topic, 1)
		heir.publish(topic, 1, false, "mine")
		heir.receiveInOrder([]string{"mine"})
	})
}

func TestSharedGroup(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint) {
		const count = 120
		// the fence comes on the same path behind the messages
		topic, fence := unique("t/"), unique("fence/")
		var members [3]*client
		for index := range members {
			members[index] = connect(t, version)
			members[index].subscribe("$share/g/"+topic, 1)
			members[index].subscribe(fence, 1)
		}
		publisher := connect(t, version)
		for _, number := range upTo(count) {
			publisher.publish(topic, 1, false, number)
		}
		publisher.publish(fence, 1, false, "end")
		seen := map[string]bool{}
		for index, member := range members {
			before := len(seen)
			for got := member.receive(); got.Topic() != fence; got = member.receive() {
				if seen[string(got.Payload())] {
					t.Fatalf("%s twice", got.Payload())
				}
				seen[string(got.Payload())] = true
			}
			if len(seen) == before {
				t.Errorf("member %d got nothing", index)
			}
		}
		if len(seen) != count {
			t.Errorf("%d of %d messages", len(seen), count)
		}
	})
}

func TestLargePayload(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint) {
		topic := unique("t/")
		payload := bytes.Repeat([]byte("abcdefg"), 100_000)
		client := connect(t, version)
		client.subscribe(topic, 2)
		client.publish(topic, 2, false, payload)
		if got := client.receive(); !bytes.Equal(got.Payload(), payload) {
			t.Errorf("%d bytes came back of %d", len(got.Payload()), len(payload))
		}
	})
}

func TestMebibytesBothWays(t *testing.T) {
	there := roomy(t)
	eachVersion(t, func(t *testing.T, version uint) {
		for _, mebibytes := range []int{1, 10} {
			for qos := byte(0); qos <= 2; qos++ {
				t.Run(fmt.Sprintf("%d MiB at QoS %d", mebibytes, qos), func(t *testing.T) {
					topic := unique("t/")
					// no block of it is like another, so that a misplaced one shows
					payload := make([]byte, mebibytes<<20)
					if _, err := rand.Read(payload); err != nil {
						t.Fatal(err)
					}
					subscriber, publisher := connect(t, version, there), connect(t, version, there)
					subscriber.subscribe(topic, qos)
					publisher.publish(topic, qos, false, payload)
					got := subscriber.receive()
					if got.Qos() != qos {
						t.Errorf("arrived at QoS %d", got.Qos())
					}
					if sha256.Sum256(got.Payload()) != sha256.Sum256(payload) {
						t.Errorf("%d other bytes came back for %d", len(got.Payload()), len(payload))
					}
				})
			}
		}
	})
}

// What mqtt-stresser does: every client publishes to a topic of its own and receives it back.
// This client writes each PUBLISH by itself.
func TestStresser(t *testing.T) {
	const clients, messages = 500, 100
	failures := make(chan error, clients)
	var all sync.WaitGroup
	for index := range clients {
		all.Add(1)
		go func() {
			defer all.Done()
			failures <- stress(index, messages)
		}()
	}
	all.Wait()
	close(failures)
	failed := 0
	for err := range failures {
		if err != nil {
			failed++
			t.Log(err)
		}
	}
	if failed > 0 {
		t.Errorf("%d of %d clients failed", failed, clients)
	}
}

func stress(index, messages int) error {
	topic := fmt.Sprintf("%s/%d", unique("stress/"), index)
	got := make(chan string, messages)
	options := mqtt.NewClientOptions().
		AddBroker("tcp://" + address).
		SetClientID(unique("s")).
		SetProtocolVersion(4).
		SetAutoReconnect(false).
		SetConnectTimeout(deadline).
		SetDefaultPublishHandler(func(_ mqtt.Client, message mqtt.Message) { got <- string(message.Payload()) })
	client := mqtt.NewClient(options)
	for _, step := range []func() mqtt.Token{
		client.Connect,
		func() mqtt.Token { return client.Subscribe(topic, 0, nil) },
	} {
		if token := step(); !token.WaitTimeout(deadline) || token.Error() != nil {
			return fmt.Errorf("client %d is not ready: %v", index, token.Error())
		}
	}
	defer client.Disconnect(0)
	for number := range messages {
		if token := client.Publish(topic, 0, false, strconv.Itoa(number)); !token.WaitTimeout(deadline) {
			return fmt.Errorf("client %d could not publish", index)
		}
	}
	for number := range messages {
		select {
		case payload := <-got:
			if payload != strconv.Itoa(number) {
				return fmt.Errorf("client %d got %s in place of %d", index, payload, number)
			}
		case <-time.After(deadline):
			return fmt.Errorf("client %d got %d of %d messages", index, number, messages)
		}
	}
	return nil
}
