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
				publisher.publish(topic, published, false, "x")
				if got := subscriber.receive(); got.Qos() != min(published, granted) || got.Topic() != topic {
					t.Errorf("%d to %d: got QoS %d on %s", published, granted, got.Qos(), got.Topic())
				}
			}
		}
	})
}

func TestOrder(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint) {
		for qos := byte(0); qos <= 2; qos++ {
			const count = 2000
			topic := unique("t/")
			subscriber, publisher := connect(t, version), connect(t, version)
			subscriber.subscribe(topic, qos)
			for number := range count {
				publisher.Publish(topic, qos, false, strconv.Itoa(number))
			}
			for number := range count {
				if got := string(subscriber.receive().Payload()); got != strconv.Itoa(number) {
					t.Fatalf("QoS %d: got %s in place of %d", qos, got, number)
				}
			}
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
		topic := unique("t/")
		watcher := connect(t, version)
		watcher.subscribe(topic, 1)
		var dropped net.Conn
		connect(t, version, func(options *mqtt.ClientOptions) {
			options.SetWill(topic, "gone", 1, false)
			options.SetCustomOpenConnectionFn(func(_ *url.URL, _ mqtt.ClientOptions) (net.Conn, error) {
				connection, err := net.DialTimeout("tcp", address, deadline)
				dropped = connection
				return connection, err
			})
		})
		if err := dropped.Close(); err != nil {
			t.Fatal(err)
		}
		if got := string(watcher.receive().Payload()); got != "gone" {
			t.Errorf("got %q", got)
		}
	})
}

func TestSessionKeepsWhatComesMeanwhile(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint) {
		topic, id := unique("t/"), unique("g")
		persistent := func(options *mqtt.ClientOptions) { options.SetClientID(id).SetCleanSession(false) }
		publisher := connect(t, version)
		sleeper := connect(t, version, persistent)
		sleeper.subscribe(topic, 2)
		sleeper.Disconnect(250)
		for number := range 50 {
			publisher.publish(topic, 1+byte(number%2), false, strconv.Itoa(number))
		}
		woken := connect(t, version, persistent)
		seen := map[string]int{}
		for range 50 {
			seen[string(woken.receive().Payload())]++
		}
		if len(seen) != 50 {
			t.Errorf("%d different messages of 50", len(seen))
		}
	})
}

func TestTakeOver(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint) {
		id := unique("g")
		lost := make(chan error, 1)
		connect(t, version, func(options *mqtt.ClientOptions) {
			options.SetClientID(id).SetConnectionLostHandler(func(_ mqtt.Client, err error) { lost <- err })
		})
		connect(t, version, func(options *mqtt.ClientOptions) { options.SetClientID(id) })
		select {
		case <-lost:
		case <-time.After(deadline):
			t.Error("the old connection stayed open")
		}
	})
}

func TestSharedGroup(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint) {
		const count = 120
		topic := unique("t/")
		together := make(chan mqtt.Message, count)
		for range 3 {
			member := connect(t, version, func(options *mqtt.ClientOptions) {
				options.SetDefaultPublishHandler(func(_ mqtt.Client, message mqtt.Message) { together <- message })
			})
			member.subscribe("$share/g/"+topic, 1)
		}
		publisher := connect(t, version)
		for number := range count {
			publisher.publish(topic, 1, false, strconv.Itoa(number))
		}
		seen := map[string]bool{}
		for range count {
			select {
			case message := <-together:
				if seen[string(message.Payload())] {
					t.Fatalf("%s twice", message.Payload())
				}
				seen[string(message.Payload())] = true
			case <-time.After(deadline):
				t.Fatalf("%d of %d messages", len(seen), count)
			}
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
